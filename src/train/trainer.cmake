target_sources(amur_train PRIVATE embedding_model.cpp evaluation.cpp reference_loss.cpp session.cpp
  stop_signal.cpp text_embedder.cpp trainer.cpp two_pass.cpp verify_gradient.cpp)
