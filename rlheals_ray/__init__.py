"""rlheals_ray: how long should SFT run, and how much RL then wins back the generalisation SFT lost?"""

__version__ = "0.1.0"
