# shellcheck shell=bash
# Ceph RGW for tests/run: one monitor, one OSD and one RADOS gateway, on loopback alone. Debian: ceph-mon ceph-osd radosgw
# ceph-common (350 MB). A start takes about 20 s, and 150 MB of memory.

# An account is a tenant here.
ceph_account=123456789012
ceph_kms_key=arn:aws:kms:us-east-1:$ceph_account:key/5d4e3c2b-1a09-4f8e-9d7c-6b5a49382716

# Without authentication between the parts there are no keys, and without keys only `crc` is possible.
ceph_config() {
    local dir=$1 fsid=$2 mon=$3 gateway=$4
    cat >"$dir/ceph.conf" <<END
[global]
fsid = $fsid
mon initial members = a
mon host = [v2:127.0.0.1:$mon]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms bind msgr1 = false
ms bind port min = 10000
ms bind port max = 32000
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
run dir = $dir/run
admin socket = $dir/run/\$name.asok
log file = $dir/log/\$name.log
crash dir = $dir/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data = $dir/mon
mon data avail warn = 1
mon data avail crit = 1
osd data = $dir/osd
osd objectstore = bluestore
bluestore block size = 8589934592
osd memory target = 939524096
[client.rgw.a]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$gateway
rgw enable usage log = false
rgw enable ops log = false
rgw s3 auth use sts = true
rgw sts key = consign-tests-16
rgw sts min session duration = 2
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = $ceph_kms_key=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
rgw crypt require ssl = false
END
}

# A process of the cluster that ends with it.
ceph_background() {
    local dir=$1 name=$2
    shift 2
    "$@" --conf "$dir/ceph.conf" -f >"$dir/log/$name.out" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

ceph_cluster() {
    local dir=$1 mon=$2 fsid=$3 uuid
    monmaptool --create --addv a "[v2:127.0.0.1:$mon]" --fsid "$fsid" "$dir/monmap"
    ceph-mon --conf "$dir/ceph.conf" --mkfs -i a --monmap "$dir/monmap"
    ceph_background "$dir" mon ceph-mon -i a
    uuid=$(cat /proc/sys/kernel/random/uuid)
    timeout 60 ceph --conf "$dir/ceph.conf" --connect-timeout 30 osd new "$uuid" 0
    ceph-osd --conf "$dir/ceph.conf" -i 0 --mkfs --osd-uuid "$uuid" --no-mon-config
    ceph_background "$dir" osd ceph-osd -i 0
    ceph_background "$dir" gateway radosgw --name client.rgw.a
}

# The customer's administrator, who may also make roles; the platform; and a user who has an access key to a bucket.
ceph_users() {
    local dir=$1 user
    local admin=(timeout 60 radosgw-admin --conf "$dir/ceph.conf" --name client.rgw.a --admin-socket=)
    for user in admin platform writer reader; do
        "${admin[@]}" user create --tenant "$ceph_account" --uid "$user" --display-name "$user" \
            --access-key "CEPH${user^^}" --secret-key "marked-secret-ceph-$user"
    done
    "${admin[@]}" caps add --tenant "$ceph_account" --uid admin --caps 'roles=*'
}

ceph_start() {
    local dir=$1 program mon gateway fsid
    for program in ceph-mon ceph-osd radosgw ceph; do
        command -v "$program" >/dev/null || { install_packages ceph-mon ceph-osd radosgw ceph-common && break; }
    done
    say 'starting Ceph'
    mkdir -p "$dir"/{run,log,crash,mon,osd,rgw}
    mon=$(free_port) gateway=$(free_port) fsid=$(cat /proc/sys/kernel/random/uuid)
    ceph_config "$dir" "$fsid" "$mon" "$gateway"
    if ! { ceph_cluster "$dir" "$mon" "$fsid" &&
        wait_for 90 "$(cat "$dir/gateway.pid")" curl --silent --output /dev/null "http://127.0.0.1:$gateway/" &&
        ceph_users "$dir"; } >"$dir/log/start.log" 2>&1; then
        say "Ceph did not start; the end of $dir/log:"
        tail -n 15 "$dir"/log/* >&2
        return 1
    fi
    export CONSIGN_TEST_CEPH_URL=http://127.0.0.1:$gateway CONSIGN_TEST_CEPH_KMS_KEY=$ceph_kms_key
    export CONSIGN_TEST_CEPH_ACCOUNT=$ceph_account CONSIGN_TEST_CEPH_ADMIN_SECRET=marked-secret-ceph-admin
    export CONSIGN_TEST_CEPH_PLATFORM_SECRET=marked-secret-ceph-platform CONSIGN_TEST_CEPH_WRITER_SECRET=marked-secret-ceph-writer
    export CONSIGN_TEST_CEPH_READER_SECRET=marked-secret-ceph-reader
}

ceph_stop() {
    local name
    for name in gateway osd mon; do
        end_pid "$1/$name.pid"
    done
}
