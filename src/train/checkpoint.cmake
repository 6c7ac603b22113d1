target_sources(amur_train PRIVATE placeholder.cpp)
