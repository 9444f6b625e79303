"""Rewrites that leave the model as it is in full precision, and easier to round.

`ties`: which layers must take the same factors; `channels`: what their inputs hold, channel by channel;
`rescale`: divide an input's channels by a factor, multiply the weights by it; `modulation`: where the linear of an
adaptive norm takes that division in; `channel_factors`: the pass that does so, whatever its factors.
"""
