from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.teachers.base import Answer, Request, Signal, Teacher
from kd_plugin.teachers.online import OnlineTeacher

__all__ = ["Answer", "OnlineTeacher", "Request", "Signal", "Teacher", "TeacherAnswer"]
