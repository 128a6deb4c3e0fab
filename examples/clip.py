"""CLIP on captioned pictures: handwritten digits of scikit-learn, each with one of many captions of its class."""

from __future__ import annotations

import hardneg
from hardneg.demo_data.digits import write_digits, write_small_clip
from hardneg.losses.variants import Variants
from hardneg.training.evaluation_set import EvaluationSet

write_digits(
    "digits", most=600
)  # train/metadata.jsonl, test/CLASS/NAME.png: a folder like any other of captioned pictures
pairs = hardneg.read_pairs("digits")
read = hardneg.ReadOptions(split="test", caption_template="a handwritten {}")
test = EvaluationSet(hardneg.read_pairs("digits", read), zero_shot=True)
print(pairs)

# A CLIP whose weights are drawn. In its place: "st:clip-ViT-B-32", or "open_clip:ViT-B-32,pretrained=openai"
encoder = hardneg.make_encoder(f"st:{write_small_clip('small-clip', seed=0)}", device="cpu")

# In-batch negatives first: an encoder that knows nothing mines nothing of use. Then mined ones. Each time the filter `group` keeps the
# pictures that a caption also fits from being negatives.
for name, steps, negatives in (("in-batch", 80, 0), ("mined", 20, 3)):
    options = hardneg.TrainOptions(
        steps=steps, batch_size=32, negatives=negatives, refresh="steps:10" if negatives else "never", filters=("group",),
        learning_rate=2e-3, temperature=0.07, variants=Variants(symmetric=True),
    )  # fmt: skip
    done = hardneg.train(pairs, encoder, name, options, evaluation=test, device="cpu", overwrite=True)
    found = done["evaluations"][-1]
    print(f"{name}: zero-shot@1 {found['zero-shot@1']:.3f}, ndcg@10 {found['ndcg@10']:.3f}")
