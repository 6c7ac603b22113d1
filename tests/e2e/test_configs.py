"""Every configuration of configs/ trains: two steps of each, small.

test_configs.py FILE
"""
import os
import sys

import support

BOUNDS = {"train.steps": 2, "train.batch_size": 64, "data.eval_limit": 100,
          # Training a vocabulary on all texts would take most of a minute.
          "data.tokenizer_model": "small.model"}


class Configuration(support.EndToEnd):
    file = ""

    def test_two_steps(self):
        import h5py

        self.train("small", {"train.steps": 1})
        with h5py.File(support.checkpoint(self.path("small"), 1), "r") as checkpoint:
            with open(self.path("small.model"), "wb") as model:
                model.write(checkpoint["/tokenizer/sentencepiece"][()].tobytes())
        with open(self.file, encoding="utf-8") as file:
            text = file.read()
        grows = {"train.growth.0.at_step": 1} if "growth:" in text else {}
        bounds = BOUNDS | grows
        if "tokenizer: ngrams" in text:  # has no vocabulary to train
            bounds |= {"data.tokenizer_model": ""}
        if "start_from:" in text:  # brings its vocabulary
            bounds |= {"train.start_from": "small", "data.tokenizer_model": "", "model.max_length": 32}
        result = self.train("run", bounds, "--json", ranks=2, limit=100, config=self.file).json()
        self.assertEqual(result["steps"], 2)
        lines = support.metrics(self.path("run"))
        self.assertEqual(len(lines), 2)
        self.assertEqual("growth" in lines[1], bool(grows))
        self.assertGreater(result["evaluation"]["query_to_document"]["queries"], 20)
        self.assertEqual(result["checkpoint"], support.checkpoint("run", 2))
        self.assertTrue(os.path.exists(self.path(result["checkpoint"])))


if __name__ == "__main__":
    Configuration.file = os.path.abspath(sys.argv.pop(1))
    support.main()
