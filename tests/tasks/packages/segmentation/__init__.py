"""Segmentation: which pixels are of the disc?"""
