"""A training loop of one's own: the sampler, the loss, a memory bank, and filtered negatives, mined again as the model learns."""

from __future__ import annotations

import torch
from functions import pairs_of_functions
from torch.utils.data import DataLoader

import hardneg

pairs, held = pairs_of_functions()
torch.manual_seed(0)
# Any torch.nn.Module that turns texts into vectors; `hardneg.evaluate` also asks for `dimension` and `fingerprint()`.
model = hardneg.HashedEncoder(dimension=64)
model.fit(pairs.documents.slice(0, len(pairs.document_ids)))
print(pairs, "before:", hardneg.evaluate(held, model, ["ndcg@10"]).means)

bank = hardneg.MemoryBank(size=512, dimension=64, max_age=50)
sampler = hardneg.MemoryBankSampler(pairs, batch_size=32, negatives=4, bank=bank)
loader = DataLoader(hardneg.Examples(pairs), batch_sampler=sampler, collate_fn=list)
loss_function = hardneg.InfoNCE(0.05, variants=hardneg.Variants(margin_relative=0.05))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
# What is no negative: known positives, copies of texts, and what scores close to a positive. "posterior:run/posterior.json" of a
# calibrated run of `pairs` finds more; it looks at how the scores of many candidates lie, so give it depth=300.
chain = hardneg.mining.parse_filters(["margin:relative=0.05"])
snapshots = hardneg.ModuleSnapshots(model, lambda copy, texts, side: copy.encode(texts))

with hardneg.RefreshedIndex(
    pairs.documents, snapshots, ids=len(pairs.document_ids), queries=(pairs.queries, len(pairs)),
    schedule="steps:20", recipe=hardneg.Recipe(depth=30), lag=5,
) as index:  # fmt: skip
    generation = None
    mined = None
    for epoch in range(3):
        for batch in loader:
            queries, positives = model.vectors([e.query for e in batch]), model.vectors([e.positive for e in batch])
            hard = model.vectors([text for e in batch for text in e.negatives]).view(len(batch), 4, -1)
            rows = torch.tensor([[e.rows.positive, *e.rows.negatives] for e in batch])
            seen = sampler.bank_view()
            ids = hardneg.PerRole(positives=rows[:, :1], hard=rows[:, 1:], bank=seen.ids)
            loss = loss_function(queries, positives, hard, bank=seen.vectors, ids=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.advance(positives.detach(), rows[:, 0])
            index.step()
            if index.generation is not generation:  # a background thread has finished a new one
                generation = index.generation
                context = hardneg.refresh.context_of(generation, pairs)
                mined = hardneg.Mined.of_neighbors(generation.neighbors, generation.ids, pairs, context, chain)
                sampler.use(mined)
        sampler.end_epoch()
        print(f"epoch {epoch}: loss {loss.item():.3f}, negatives of generation {index.generation.number}")
        print("rejected:", mined and mined.rejected)
print("after:", hardneg.evaluate(held, model, ["ndcg@10"]).means)
