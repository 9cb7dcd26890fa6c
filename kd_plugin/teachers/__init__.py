from kd_plugin.teachers.online import OnlineTeacher, TeacherAnswer

__all__ = ["OnlineTeacher", "TeacherAnswer"]
