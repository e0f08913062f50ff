"""Mutation testing of the pricing kernel: which change of its code would no test notice?"""
