"""Distances: the tables are log-odds, in integers that never change."""

import zlib

import numpy as np

from deltamask_jax.codecs import distance, side_info


def test_tables_are_the_log_odds_and_never_change():
    uniform, theta = distance.logit_tables()
    p = (np.arange(65536) + 0.5) / 65536
    assert np.abs(uniform / 1024 - np.log2(p / (1 - p))).max() < 2 / 1024
    p = np.maximum(np.arange(65536), 0.25) / 65536
    assert np.abs(theta / 1024 - np.log2(p / (1 - p))).max() < 2 / 1024
    # Part of the wire format: both ends must have the same tables.
    assert zlib.crc32(uniform.astype("<i2").tobytes()) == UNIFORM_CRC
    assert zlib.crc32(theta.astype("<i2").tobytes()) == THETA_CRC
    assert zlib.crc32(side_info._PROBABILITIES.astype("<u2").tobytes()) == PROBABILITY_CRC


UNIFORM_CRC, THETA_CRC, PROBABILITY_CRC = 0x1712AD53, 0xA723E701, 0x4F4EDD59


def test_distance_is_symmetric_and_small_where_a_flip_is_easy():
    u = np.array([32_768, 32_768, 100, 65_000], np.uint16)
    theta = np.array([32_768, 65_000, 100, 32_768], np.uint16)
    apart = distance.between(u, theta)
    assert apart[0] < 3 and apart[2] < 10
    assert abs(apart[1] - apart[3]) < 3
    assert apart[1] > 6 * 1024
