"""Models of other programs, and for them: amur import hf, amur export hf, folders in place of
checkpoints. What sentence-transformers computes from them is tested live in live_huggingface.py."""
import json
import os
import shutil

import numpy as np
import support

FIXTURES = os.path.join(os.path.dirname(__file__), "..", "unit", "huggingface", "fixtures")
BERT = {"model.norm_position": "post", "model.position": "learned"}
MODERNBERT = {"model.norm_position": "pre", "model.position": "rotary", "model.norm": "layer",
              "model.activation": "geglu", "model.bias": "false"}
LOCAL = MODERNBERT | {"model.layers": 4, "model.local_attention": 8, "model.local_rotary_base": 500}
STATIC = {"model.layers": 0, "model.projection": 24}


class Exchange(support.EndToEnd):
    def texts(self):
        return [query for query, _ in support.pairs(40, seed=5)]

    def embed(self, model, *more, ranks=1):
        self.write("texts.txt", "\n".join(self.texts()) + "\n")
        out = self.path("out.npy")
        outcome = self.run_in("embed", model, "--input", "texts.txt", "--output", out, *more,
                              ranks=ranks)
        self.assertEqual(outcome.code, 0, outcome)
        return np.load(out)

    def amur(self, *args, ranks=1, code=0):
        outcome = self.run_in(*args, ranks=ranks)
        self.assertEqual(outcome.code, code, outcome)
        return outcome

    def json_file(self, *names):
        with open(self.path(*names), encoding="utf-8") as file:
            return json.load(file)

    def test_a_pretrained_model_is_trained_on_and_handed_back(self):
        shutil.copytree(os.path.join(FIXTURES, "bert"), self.path("bert"))
        before = self.embed("bert")
        # Other chunks: some libraries round a row of a product by how many rows there are.
        self.assertLess(np.max(np.abs(self.embed("bert", ranks=2) - before)), 1e-6)
        shared = self.embed("bert", "--set", "parallel.tp=2", ranks=2)
        self.assertLess(np.max(np.abs(shared - before)), 1e-6)

        result = self.amur("import", "hf", "bert", "base.h5", "--json", ranks=2).json()
        self.assertEqual((result["class"], result["max_length"]), ("BERT", 20))
        self.assertIn("unused.safetensors", result["carried"])
        self.assertTrue(np.array_equal(before, self.embed("base.h5")))
        one = support.datasets(self.path("base.h5"), ("/model", "/carried"))
        self.amur("import", "hf", "bert", "one.h5")
        two = support.datasets(self.path("one.h5"), ("/model", "/carried"))
        self.assertEqual(one.keys(), two.keys())
        for name, value in one.items():
            self.assertTrue(np.array_equal(value, two[name]), name)
        self.refuses(self.run_in("import", "hf", "bert", "one.h5", ranks=2), 2, "--force")
        self.refuses(self.run_in("import", "onnx", "bert", "x.h5"), 2, "the format is hf")
        self.refuses(self.run_in("eval", "base.h5"), 2, "imported and has no data of its own")

        self.write("tune.yaml", "data: {sources: [{format: tsv, path: pairs.tsv, eval_path: "
                   "eval.tsv, query_prefix: 'q: '}]}\n"
                   "train: {start_from: base.h5, steps: 6, batch_size: 32}\n"
                   "optimizer: {kind: adamw, learning_rate: 0.001}\n")
        self.train("run", {}, config="tune.yaml", ranks=2)
        self.train("direct", {"train.start_from": "bert"}, config="tune.yaml", ranks=2)
        direct = support.datasets(support.checkpoint(self.path("direct"), 6))
        for name, value in support.datasets(support.checkpoint(self.path("run"), 6)).items():
            self.assertTrue(np.array_equal(value, direct[name]), name)
        result = self.amur("export", "hf", "run", "out", "--json", ranks=2).json()
        self.assertEqual(result["class"], "BERT")
        self.assertTrue(np.array_equal(self.embed("run", "--prefix", ""),
                                       self.embed("out", "--prefix", "")))
        self.assertEqual(self.json_file("out", "config_sentence_transformers.json")["prompts"],
                         {"query": "q: ", "document": ""})
        with open(self.path("out", "README.md"), encoding="utf-8") as file:
            card = file.read()
        for text in ("| class | BERT |", "| steps, pairs seen | 6, 192 |", "AdamW", "pairs.tsv",
                     '"imported_from"', "recall@1", 'encode_query(["a question"])'):
            self.assertIn(text, card)
        self.assertNotIn(self.folder, card)
        self.refuses(self.run_in("export", "hf", "run", "out"), 2, "is there already", "--force")
        self.amur("export", "hf", "run", "out", "--force")

    def files(self, folder):
        """All but the model card, which tells where a model came from."""
        found = {}
        for root, _, names in os.walk(self.path(folder)):
            for name in names:
                path = os.path.join(root, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, self.path(folder))] = file.read()
        del found["README.md"]
        return found

    def test_models_from_scratch_have_a_class_and_come_back(self):
        for name, values, files in (
                ("BERT", BERT, {"config.json", "1_Pooling/config.json"}),
                ("ModernBERT", LOCAL, {"config.json", "tokenizer_config.json"}),
                ("StaticEmbedding", STATIC, {"2_Dense/config.json", "2_Dense/model.safetensors"})):
            self.train(name, values | {"train.steps": 1, "eval.every_steps": 0})
            out = name + "-out"
            result = self.amur("export", "hf", name, out, "--json").json()
            self.assertEqual(result["class"], name)
            always = {"model.safetensors", "modules.json", "README.md", "tokenizer.json",
                      "config_sentence_transformers.json"}
            self.assertLessEqual(files | always, set(result["files"]))
            for file in result["files"]:
                self.assertTrue(os.path.exists(self.path(out, file)), file)
                if file.endswith(".json"):
                    self.json_file(out, file)
            self.assertEqual(os.listdir(self.folder).count(out + ".amur-tmp"), 0)
            # Bit for bit, with the embeddings of the run.
            back = name + ".h5"
            self.assertEqual(self.amur("import", "hf", out, back, "--json").json()["class"], name)
            self.amur("export", "hf", back, name + "-again")
            self.assertEqual(self.files(out), self.files(name + "-again"))
            before = self.embed(name)
            for model in (out, back):
                self.assertLess(np.max(np.abs(self.embed(model) - before)), 1e-6)

    def test_static_models_of_others(self):
        # As sentence-transformers saves one: a table, and a tokenizer that is asked for no markers.
        shutil.copytree(os.path.join(FIXTURES, "bert"), self.path("bert"))
        os.mkdir(self.path("static"))
        with open(self.path("bert", "tokenizer.json"), encoding="utf-8") as file:
            tokenizer = json.load(file)
        tokenizer["truncation"] = {"max_length": 6, "strategy": "LongestFirst", "stride": 0,
                                   "direction": "Right"}
        tokens = len(tokenizer["model"]["vocab"])
        rows = np.random.default_rng(3).standard_normal((tokens + 2, 8)).astype(np.float32)
        header = json.dumps({"embedding.weight": {"dtype": "F32", "shape": rows.shape,
                                                  "data_offsets": [0, rows.nbytes]}}).encode()
        header += b" " * (-len(header) % 8)
        with open(self.path("static", "model.safetensors"), "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + rows.tobytes())
        self.write("static/tokenizer.json", json.dumps(tokenizer))
        self.write("static/modules.json", json.dumps([
            {"idx": 0, "name": "0", "path": "", "type":
             "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"}]))
        self.write("texts.txt", "the tiger\n\nby a river and the cat and the dog\n")
        self.amur("embed", "static", "--input", "texts.txt", "--output", self.path("out.npy"))
        vocab = tokenizer["model"]["vocab"]
        for got, words in zip(np.load(self.path("out.npy")), (
                ["the", "tiger"], ["[UNK]"], ["by", "a", "river", "and", "the", "cat"])):
            mean = np.mean([rows[vocab[word]] for word in words], axis=0)
            self.assertLess(np.max(np.abs(got - mean / np.linalg.norm(mean))), 1e-6)
        self.amur("import", "hf", "static", "static.h5")
        self.amur("export", "hf", "static.h5", "back")
        self.amur("import", "hf", "back", "again.h5")
        self.amur("export", "hf", "again.h5", "again")
        self.assertEqual(self.files("back"), self.files("again"))
        with open(self.path("back", "model.safetensors"), "rb") as file:
            self.assertTrue(file.read().endswith(rows.tobytes()))

    def test_what_no_class_expresses_is_refused_by_name(self):
        for name, values, texts in (
                ("gate", BERT | {"model.norm_gate": "true"}, ["model.norm_gate true"]),
                ("pre", {"model.norm_position": "pre"}, ["model.norm_position pre",
                                                         "model.position other than rotary"]),
                ("ngrams", STATIC | {"data.tokenizer": "ngrams"}, ["data.tokenizer ngrams"]),
                ("two", BERT | {"model.towers": "separate"}, ["--tower query"])):
            self.train(name, values | {"train.steps": 1, "eval.every_steps": 0})
            self.refuses(self.run_in("export", "hf", name, "out", ranks=2), 2, *texts)
            self.assertFalse(os.path.exists(self.path("out")))
        self.amur("export", "hf", "two", "out", "--tower", "document")


if __name__ == "__main__":
    support.unittest.main()
