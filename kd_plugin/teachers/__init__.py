from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.teachers.online import OnlineTeacher

__all__ = ["OnlineTeacher", "TeacherAnswer"]
