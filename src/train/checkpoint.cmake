target_sources(amur_train PRIVATE checkpoint.cpp checkpoint_format.cpp checkpoint_info.cpp
  hdf5_file.cpp run_folder.cpp)
