//! Files and objects that are staged for one customer are delivered to no other one, on a real S3
//! and from real files.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::testbed::moto::{ACCOUNT, Moto, customer_policy, platform_policy};
use crate::testbed::site::{Site, job};
use crate::testbed::unique;

const TENANTS: [&str; 2] = ["acme", "beta"];

struct World {
    moto: Moto,
    site: Site,
    staging: String,
    bucket: String,
}

impl World {
    async fn build() -> Self {
        let moto = Moto::shared();
        let mut site = Site::new("tenants").await;
        let (staging, bucket) = (unique("staging"), unique("customers"));
        moto.make_bucket(&staging).await;
        moto.make_bucket(&bucket).await;
        let (_, platform) = moto.make_user(&unique("platform"), platform_policy(&staging)).await;
        let (_, key) = moto.make_user(&unique("user"), customer_policy(&bucket)).await;
        let auth = json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret});
        let root = format!("{}/{{tenant}}", site.files().display());
        site.identity(&platform).aws(&moto.url).set("source.file_root", root);
        site.set("source.s3", json!([{"bucket": staging, "prefix": "{tenant}/", "owner": ACCOUNT}]));
        for tenant in TENANTS {
            let keys = json!({"bucket": bucket, "region": "us-east-1", "prefix": format!("in/{tenant}"), "auth": auth});
            let mut with_tenant = keys.clone();
            with_tenant["tenant"] = json!(tenant);
            site.destination(tenant, &with_tenant);
            std::fs::create_dir(site.files().join(tenant)).unwrap();
            site.file(&format!("{tenant}/f"), tenant.as_bytes());
            moto.put(&staging, &format!("{tenant}/f"), tenant.as_bytes().to_vec()).await;
        }
        site.destination(
            "nobody",
            &json!({"bucket": bucket, "region": "us-east-1", "prefix": "in/nobody", "auth": auth}),
        );
        symlink("../beta/f", site.files().join("acme/link")).unwrap();
        symlink("../beta", site.files().join("acme/folder")).unwrap();
        Self { moto, site, staging, bucket }
    }

    /// Ends a job; gives its outcome.
    async fn end(&self, number: usize, url: &str, to: &str) -> Value {
        let id = format!("job-{number}");
        self.site.broker.schedule(&job(&id, url, to, &id)).await;
        self.site.broker.ended(&id).await
    }
}

#[tokio::test]
async fn a_job_of_one_tenant_reads_nothing_that_is_staged_for_another() {
    let world = World::build().await;
    let worker = world.site.worker().await;
    let file = |path: &str| format!("file://{}/{path}", world.site.files().display());
    let object = |key: &str| format!("s3://{}/{key}", world.staging);
    for (number, (url, to)) in
        [(file("acme/f"), "acme"), (object("acme/f"), "acme"), (file("beta/f"), "beta"), (object("beta/f"), "beta")]
            .iter()
            .enumerate()
    {
        let outcome = world.end(number, url, to).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{url}: {outcome:#}");
        let stored = world.moto.object(&world.bucket, &format!("in/{to}/job-{number}")).await.unwrap();
        assert_eq!(stored.bytes, to.as_bytes(), "{url}");
    }
    for (number, (url, to)) in [
        (file("beta/f"), "acme"),
        (object("beta/f"), "acme"),
        (file("acme/link"), "acme"),
        (file("acme/folder/f"), "acme"),
        (object("acme"), "beta"),
        (file("acme/f"), "nobody"),
        (object("acme/f"), "nobody"),
    ]
    .iter()
    .enumerate()
    {
        let outcome = world.end(number + 10, url, to).await;
        assert_eq!(outcome["data"]["reason"], "source_forbidden", "{url} to {to}: {outcome:#}");
        if *to == "nobody" {
            assert!(outcome["data"]["message"].as_str().unwrap().contains("\"tenant\""), "{outcome:#}");
        }
    }
    drop(worker);
    world.site.broker.clean().await;
}
