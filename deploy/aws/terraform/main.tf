# The worker's own identity: a role that may assume customers' roles, and read the staging buckets if there are any.
# Customers name this role in their trust policies; `consign policy trust --principal ARN` writes them.

terraform {
  required_version = ">= 1.3"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

locals {
  issuer    = var.oidc_provider_arn == null ? "" : element(split(":oidc-provider/", var.oidc_provider_arn), 1)
  partition = data.aws_partition.here.partition
  staging   = [for bucket in var.staging_buckets : "arn:${local.partition}:s3:::${bucket}"]
  customers = coalesce(var.customer_roles, [
    "arn:${local.partition}:iam::*:role/consign",
    "arn:${local.partition}:iam::*:role/consign/*",
  ])
}

data "aws_iam_policy_document" "trust" {
  # EKS with IAM roles for service accounts.
  dynamic "statement" {
    for_each = var.oidc_provider_arn == null ? [] : [var.oidc_provider_arn]

    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [statement.value]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = ["system:serviceaccount:${var.namespace}:${var.service_account}"]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  # EKS Pod Identity, ECS or EC2.
  dynamic "statement" {
    for_each = var.trusted_service == null ? [] : [var.trusted_service]

    content {
      # TagSession is for the agent on the node alone. The association below has session tags disabled: passed on to customers' roles
      # they would need sts:TagSession there and below.
      actions = var.trusted_service == "pods.eks.amazonaws.com" ? ["sts:AssumeRole", "sts:TagSession"] : ["sts:AssumeRole"]

      principals {
        type        = "Service"
        identifiers = [statement.value]
      }

      dynamic "condition" {
        for_each = var.trusted_service == "pods.eks.amazonaws.com" ? [data.aws_caller_identity.here.account_id] : []

        content {
          test     = "StringEquals"
          variable = "aws:SourceAccount"
          values   = [condition.value]
        }
      }
    }
  }
}

data "aws_iam_policy_document" "worker" {
  # Customers' roles, and none of this account: what is ours does not become reachable by the name of a role in a job.
  statement {
    sid       = "AssumeCustomersRoles"
    actions   = ["sts:AssumeRole"]
    resources = local.customers

    condition {
      test     = "StringNotEquals"
      variable = "aws:ResourceAccount"
      values   = [data.aws_caller_identity.here.account_id]
    }
  }

  dynamic "statement" {
    for_each = length(local.staging) == 0 ? [] : [local.staging]

    content {
      sid       = "ReadStagingBuckets"
      actions   = ["s3:GetObject"]
      resources = [for bucket in statement.value : "${bucket}/*"]
    }
  }

  # Without it S3 answers 403 for a missing file, not 404.
  dynamic "statement" {
    for_each = length(local.staging) == 0 ? [] : [local.staging]

    content {
      sid       = "TellMissingStagingObjects"
      actions   = ["s3:ListBucket"]
      resources = statement.value
    }
  }

  dynamic "statement" {
    for_each = length(var.staging_kms_key_arns) == 0 ? [] : [var.staging_kms_key_arns]

    content {
      sid       = "DecryptStagingObjects"
      actions   = ["kms:Decrypt"]
      resources = statement.value
    }
  }
}

resource "aws_iam_role" "worker" {
  name                 = var.name
  description          = "consign: assumes customers' roles and delivers files into their buckets"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  permissions_boundary = var.permissions_boundary

  lifecycle {
    precondition {
      condition     = (var.oidc_provider_arn == null) != (var.trusted_service == null)
      error_message = "Give one of oidc_provider_arn (IRSA) and trusted_service (Pod Identity, ECS, EC2)."
    }
  }
}

resource "aws_iam_role_policy" "worker" {
  name   = "consign"
  role   = aws_iam_role.worker.id
  policy = data.aws_iam_policy_document.worker.json
}

# EKS Pod Identity, where the cluster is named. disable_session_tags needs version 6 of the provider.
resource "aws_eks_pod_identity_association" "worker" {
  count = var.eks_cluster == null ? 0 : 1

  cluster_name         = var.eks_cluster
  namespace            = var.namespace
  service_account      = var.service_account
  role_arn             = aws_iam_role.worker.arn
  disable_session_tags = true
}
