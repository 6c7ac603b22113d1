target_sources(amur_train PRIVATE
  batch.cpp batch_stream.cpp data.cpp line_format.cpp line_source.cpp mapped_file.cpp ngram_tokenizer.cpp
  package_source.cpp sample_index.cpp sample_order.cpp tokenizer.cpp trans_de_en.cpp
  unigram_lattice.cpp wordnet.cpp)
