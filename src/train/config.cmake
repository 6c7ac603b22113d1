# A library of its own: it needs nothing but the headers of the model, so that tools and tests can
# read a configuration without the rest.
add_library(amur_config STATIC config.cpp config_keys.cpp config_check.cpp config_text.cpp)
target_link_libraries(amur_config PUBLIC amur_core PRIVATE yaml-cpp)
target_link_libraries(amur_train PUBLIC amur_config)
