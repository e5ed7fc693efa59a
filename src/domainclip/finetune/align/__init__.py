"""The alignment report: do a model's pictures and texts agree, and which rows do not?"""
