"""From a request's context to the state that a policy reads, and the store that remembers users between requests.

In: contexts (feature name → value), bulk loads and feedback. Out: `float32[B, S]` states by the vocabulary's
`state_features`, identical in training and serving, and each user's features and history.
"""
