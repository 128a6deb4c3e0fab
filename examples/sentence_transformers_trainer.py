"""The trainer of sentence-transformers, with negatives that are mined again as it trains."""

from __future__ import annotations

import torch
from datasets import Dataset
from functions import pairs_of_functions
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import hardneg
from hardneg.integrations.sentence_transformers import HardNegatives, InfoNCE

pairs, held = pairs_of_functions()
texts = [*pairs.queries.slice(0, len(pairs)), *pairs.documents.slice(0, len(pairs.document_ids))]

# A model of word vectors that needs no download. In its place: SentenceTransformer("all-MiniLM-L6-v2")
torch.manual_seed(0)
tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.train_from_iterator(
    texts, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=["[UNK]"], show_progress=False)
)
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)], device="cpu")
print("before:", hardneg.evaluate(held, model, ["ndcg@10"]).means)

dataset = Dataset.from_dict({"question": texts[: len(pairs)], "code": pairs.documents.take(pairs.positives.values)})
arguments = SentenceTransformerTrainingArguments(
    "trainer", num_train_epochs=3, per_device_train_batch_size=32, learning_rate=2e-2, report_to=[], use_cpu=True,
    logging_steps=50, save_strategy="no", disable_tqdm=True,
)  # fmt: skip
negatives = HardNegatives(
    dataset, model, num_negatives=4, depth=30, refresh="steps:20", filters=["margin:relative=0.05"]
)
trainer = SentenceTransformerTrainer(
    model, arguments, train_dataset=negatives.dataset, loss=InfoNCE(model, negatives), callbacks=[negatives]
)
trainer.train()
print("after:", hardneg.evaluate(held, model, ["ndcg@10"]).means)
