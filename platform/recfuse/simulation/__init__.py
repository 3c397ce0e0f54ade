"""In: exposures, a scorer's predictions and fusion policies.

Out: a session simulator whose responses are fitted to the exposures, its native session logs, and A/B tests in it.

exposures, shop    generators of exposures            sources            real logs or a generator
response           how a user answers an item         response_network   what is fitted, response_fit how
response_stack     what a scorer's predictions add    meaning, slopes    how much they mean for whom
predictions        a scorer's, for the pools          user_features      state features of the users
world              what a step needs, on disk         build, calibration how it is made, and set to the log
fidelity           what ranking changes: world, log
sessions           requests, pages, leaving           environment        their Gymnasium forms
rollout            policies through a world           session_logs       what they did, as logs
persons, arms      who takes part, under what         experiment         buckets live and are compared
simulate, output   the job, and what it leaves        ab_test, cem       the job, and its searched baseline
online             a policy that learns in it         uniform            luck as a function of what it is for
"""
