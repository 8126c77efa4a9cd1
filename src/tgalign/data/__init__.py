"""Alignment data: records, their encoding and batching."""
