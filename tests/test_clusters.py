"""Padding does not change an embedding, and k-means finds the true clusters."""

import numpy as np
import pandas as pd
from tiny import PROMPTS, tiny_policy

from rarlhf_nb.lab.evaluation.clusters import cluster_prompts, embed_prompts


def test_an_embedding_is_the_same_alone_and_padded():
    policy = tiny_policy()
    together = embed_prompts(policy, PROMPTS)
    alone = np.concatenate([embed_prompts(policy, [prompt]) for prompt in PROMPTS])
    assert together.shape == (8, 16)
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_clusters_that_are_there_are_found_and_numbered_by_size():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [30, 20, 10])
    embeddings = 10 * rng.normal(size=(3, 16))[truth] + rng.normal(size=(60, 16))
    prompts = pd.DataFrame({"prompt": [str(i) for i in range(60)]})
    found = cluster_prompts(prompts, embeddings, clusters=3)
    assert found["cluster"].tolist() == truth.tolist()
    centred = embeddings - embeddings.mean(0)
    spread = np.linalg.eigvalsh(centred.T @ centred)[::-1]  # PCA from the covariance
    np.testing.assert_allclose((found[["x", "y"]] ** 2).sum(), spread[:2])
    pd.testing.assert_frame_equal(found, cluster_prompts(prompts, embeddings, clusters=3))


def test_fewer_prompts_than_clusters():
    found = cluster_prompts(pd.DataFrame({"prompt": ["a", "b"]}), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert sorted(found["cluster"]) == [0, 1]
