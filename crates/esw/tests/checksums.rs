//! TCP between two VFs over a program that reads packets at one representor and sends them at the other.

mod lab;

use std::fs;

use lab::Folder;

/// Forwards what arrives at one netdev to the other.
const FORWARDER: &str = r#"
import select, socket, sys
sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2)]
for one, name in zip(sockets, sys.argv[1:]):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.bind((name, 0))
print("ready", flush=True)
while True:
    for one in select.select(sockets, [], [])[0]:
        frame, address = one.recvfrom(70000)
        if address[2] != socket.PACKET_OUTGOING:
            try:
                sockets[1 - sockets.index(one)].send(frame)
            except OSError:
                pass
"#;

/// Sends a megabyte, or receives one and prints its length and sum.
const TRANSFER: &str = r#"
import socket, sys, zlib
data = bytes(range(256)) * 4096
if sys.argv[1] == "send":
    with socket.create_connection(("10.0.0.2", 5001), timeout=60) as connection:
        connection.sendall(data)
else:
    listener = socket.create_server(("10.0.0.2", 5001))
    listener.settimeout(60)
    connection, _ = listener.accept()
    connection.settimeout(60)
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    print(len(received), zlib.crc32(received) == zlib.crc32(data))
"#;

const SETUP: &str = "
echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs
devlink dev eswitch set pci/0000:08:00.0 mode switchdev
for n in 0 1; do
    ip netns add vf$n; ip link set enp8s0f0v$n netns vf$n
    ip -n vf$n addr add 10.0.0.$((n + 1))/24 dev enp8s0f0v$n; ip -n vf$n link set enp8s0f0v$n up
    ip link set enp8s0f0npf0vf$n up
done
nsenter --net=/run/netns/vf0 ethtool -k enp8s0f0v0 | grep -E '^tx-checksumming|^tcp-segmentation' >&2
python3 $FOLDER/forwarder.py enp8s0f0npf0vf0 enp8s0f0npf0vf1 > /run/forwarder & forwarder=$!
until grep -q ready /run/forwarder; do sleep 0.1; done
nsenter --net=/run/netns/vf1 python3 $FOLDER/transfer.py receive & receiver=$!
until nsenter --net=/run/netns/vf1 grep -q ':1389 .* 0A ' /proc/net/tcp; do sleep 0.1; done
nsenter --net=/run/netns/vf0 python3 $FOLDER/transfer.py send
wait $receiver
kill $forwarder
";

#[test]
fn with_complete_checksums_tcp_passes_a_program_that_reads_packets_at_representors() {
    if lab::skipped(&["bash", "devlink", "ethtool", "python3"]) {
        return;
    }
    let folder = Folder::make("checksums");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\ncomplete_checksums = true\n";
    for (name, text) in
        [("config", config), ("forwarder.py", FORWARDER), ("transfer.py", TRANSFER), ("setup.sh", SETUP)]
    {
        fs::write(folder.0.join(name), text).unwrap();
    }
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach --config $FOLDER/config >&2
        timeout 60 $ESW exec -- bash $FOLDER/setup.sh || true
        $ESW down >&2";
    let output = lab::apart(script, &folder.0);
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.trim(), "1048576 True", "{errors}");
    // The VF itself leaves both to the card, as a VF of hardware does.
    assert!(errors.contains("tx-checksumming: on\ntcp-segmentation-offload: on\n"), "{errors}");
}
