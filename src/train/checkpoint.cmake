target_sources(amur_train PRIVATE checkpoint.cpp checkpoint_format.cpp checkpoint_info.cpp
  hdf5_file.cpp inspect.cpp run_folder.cpp)
