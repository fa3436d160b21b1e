output "role_arn" {
  description = "For the annotation of the service account, and for customers' trust policies."
  value       = aws_iam_role.worker.arn
}
