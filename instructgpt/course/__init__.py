"""The course: exercises that take a function out of this project and judge the one that a student writes instead."""
