variable "name" {
  description = "The role's name. Customers trust its ARN, so that a change of it breaks every destination."
  type        = string
  default     = "consign"
}

variable "customer_roles" {
  description = "The ARNs or ARN patterns of the roles that may be assumed. Agree on a name or a path with customers to keep it narrow. Null: the role consign and all below the path /consign/, of every account of this partition."
  type        = list(string)
  default     = null
}

variable "staging_buckets" {
  description = "The buckets of source.s3, which the worker may read."
  type        = list(string)
  default     = []
}

variable "staging_kms_key_arns" {
  description = "The KMS keys that the staging buckets encrypt with, if they are keys of your own."
  type        = list(string)
  default     = []
}

variable "oidc_provider_arn" {
  description = "With IRSA: the ARN of the cluster's OIDC provider."
  type        = string
  default     = null
}

variable "namespace" {
  description = "With IRSA or eks_cluster: the namespace of the worker."
  type        = string
  default     = "consign"
}

variable "service_account" {
  description = "With IRSA or eks_cluster: the service account of the worker."
  type        = string
  default     = "consign"
}

variable "trusted_service" {
  description = "Without IRSA: pods.eks.amazonaws.com (Pod Identity), ecs-tasks.amazonaws.com or ec2.amazonaws.com."
  type        = string
  default     = null
}

variable "eks_cluster" {
  description = "With Pod Identity: the name of the cluster, for an association with session tags disabled. Null: you create it."
  type        = string
  default     = null
}

variable "permissions_boundary" {
  description = "The ARN of a permissions boundary, where your account demands one."
  type        = string
  default     = null
}
