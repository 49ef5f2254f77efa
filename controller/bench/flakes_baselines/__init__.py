"""Rivals of the flake detectors, and the photographs on which all of them are measured.

`photographs` are simulated and real ones with their truth; `gaussian_mixture` is the published
contrast method, written anew from its description; `classical` are the textbook segmentations;
`methods` puts them and our own detectors into one form.
"""
