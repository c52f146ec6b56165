"""Conversations, tools, and answers taken apart."""
