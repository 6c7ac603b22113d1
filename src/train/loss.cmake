target_sources(amur_train PRIVATE adamw.cpp buffered_optimizer.cpp contrastive_loss.cpp
  gradient_sync.cpp lion.cpp logit_mask.cpp optimizer.cpp schedule.cpp tiger.cpp)
