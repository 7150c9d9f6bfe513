"""Groups of prompts that the policy sees as similar: embeddings, k-means, and two principal components to draw."""

import numpy as np
import pandas as pd
import torch
from scipy.cluster.vq import kmeans2

from rarlhf_nb.conversations import Prompt, is_conversation, templated
from rarlhf_nb.policy import ActorCritic


@torch.no_grad()
def embed_prompts(policy: ActorCritic, prompts: list[Prompt], batch_size: int = 64) -> np.ndarray:
    """The mean of the last hidden states over each prompt's tokens: (N, H)."""
    embeddings = []
    for at in range(0, len(prompts), batch_size):
        # padding on the right shifts no position
        part = prompts[at : at + batch_size]
        texts, special = [templated(each, policy.processing_class) for each in part], not is_conversation(part[0])
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt", "add_special_tokens": special}
        batch = policy.processing_class(texts, **options).to(policy.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden = policy.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        weights = mask.unsqueeze(-1)
        embeddings.append(((hidden * weights).sum(1) / weights.sum(1)).float().cpu())
    return torch.cat(embeddings).numpy()


def cluster_prompts(prompts: pd.DataFrame, embeddings: np.ndarray, clusters: int = 8, seed: int = 0) -> pd.DataFrame:
    """The prompts with the columns `cluster` (k-means on the embeddings) and `x`, `y` (the first two components).

    embeddings: (N, H), one row for each row of `prompts`. Clusters are numbered by size, 0 is the largest. With fewer
    prompts than `clusters` there is one cluster per prompt at most.
    """
    centred = embeddings - embeddings.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(centred), 2))
    plane[:, : len(directions[:2])] = centred @ directions[:2].T
    _, found = kmeans2(centred, min(clusters, len(centred)), minit="++", rng=np.random.default_rng(seed))
    by_size = pd.Series(found).value_counts().index.tolist()
    return prompts.assign(x=plane[:, 0], y=plane[:, 1], cluster=[by_size.index(cluster) for cluster in found])
