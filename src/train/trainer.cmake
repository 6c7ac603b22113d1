target_sources(amur_train PRIVATE embed_file.cpp embedding_model.cpp evaluation.cpp reference_loss.cpp session.cpp step_report.cpp
  stop_signal.cpp text_embedder.cpp trainer.cpp two_pass.cpp verify_gradient.cpp)
