package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/apparate/apparate/test/cluster/boot"
	"github.com/apparate/apparate/test/tools"
)

// pauseImage is what holds pods together.
const pauseImage = "registry.k8s.io/pause:3.10.2"

// install makes the node's root as it is before the first start.
func (n *Node) install() error {
	for _, d := range []string{
		"dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var",
		"etc/cni/net.d", "etc/containerd/certs.d/_default", "etc/kubernetes/pki", "opt/cni/bin", "opt/nft",
		"usr/local/bin", "usr/local/sbin", "var/lib/kubelet", "var/lib/apparate", "var/log", "var/tmp",
	} {
		if err := os.MkdirAll(filepath.Join(n.root(), d), 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(n.root(), "root"), 0o700), os.Chmod(filepath.Join(n.root(), "var/tmp"), 0o777|fs.ModeSticky),
		os.Symlink("/run", filepath.Join(n.root(), "var/run"))); err != nil {
		return err
	}
	if err := n.installEtc(); err != nil {
		return err
	}
	for _, b := range n.binds() { // each needs something to be mounted on
		if err := placeFor(b, n.root()); err != nil {
			return err
		}
	}
	files, err := n.files()
	if err != nil {
		return err
	}
	for path, text := range files {
		if err := os.WriteFile(filepath.Join(n.root(), path), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{
		"usr/local/bin/kubelet": "kube", "usr/local/bin/kube-proxy": "kube", "usr/local/bin/kubectl": "kube", "usr/local/sbin/nft": "/opt/nft/nft",
	} {
		if err := os.Symlink(to, filepath.Join(n.root(), link)); err != nil {
			return err
		}
	}
	return n.installLinks()
}

// installEtc copies what programs expect below /etc, and writes what is a node's own.
func (n *Node) installEtc() error {
	for _, name := range []string{
		"passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "os-release", "debian_version",
		"protocols", "services", "alternatives", "ssl", "ca-certificates.conf", "localtime", "mke2fs.conf",
	} {
		if err := copyTree(filepath.Join("/etc", name), filepath.Join(n.root(), "etc", name)); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hostname": n.Name + "\n", "machine-id": hex.EncodeToString(id) + "\n", "resolv.conf": "# no name server\n",
		"hosts": "127.0.0.1 localhost\n" + n.IP + " " + n.Name + "\n",
	} {
		if err := os.WriteFile(filepath.Join(n.root(), "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// installLinks makes the links of the machine's root (bin, lib and so on, where they
// are links into /usr) and of its /usr.
func (n *Node) installLinks() error {
	for _, dir := range []string{"/", "/usr"} {
		all, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range all {
			if e.Type() != fs.ModeSymlink || !system(dir, e.Name()) {
				continue
			}
			to, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			if err := os.Symlink(to, filepath.Join(n.root(), dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// system says whether name in the directory dir of the machine is of the system's
// programs.
func system(dir, name string) bool {
	if dir == "/usr" {
		return name != "local"
	}
	return name == "bin" || name == "sbin" || strings.HasPrefix(name, "lib")
}

// binds are the files of the machine that the node sees.
func (n *Node) binds() (all []boot.Bind) {
	for _, dir := range []string{"/", "/usr"} {
		entries, _ := os.ReadDir(dir) // installLinks has read it
		for _, e := range entries {
			if p := filepath.Join(dir, e.Name()); e.IsDir() && system(dir, e.Name()) {
				all = append(all, boot.Bind{From: p, To: p})
			}
		}
	}
	t := n.c.tools
	containerd := filepath.Dir(t[n.o.program()])
	for _, p := range []string{tools.Containerd, tools.Shim, tools.Ctr} {
		all = append(all, boot.Bind{From: filepath.Join(containerd, p), To: "/usr/local/bin/" + p})
	}
	return append(all,
		boot.Bind{From: t[tools.Runc], To: "/usr/local/sbin/runc"},
		boot.Bind{From: t[tools.Kube], To: "/usr/local/bin/kube"},
		boot.Bind{From: filepath.Dir(t[tools.CNI]), To: "/opt/cni/bin"},
		boot.Bind{From: filepath.Dir(t[tools.Nft]), To: "/opt/nft"},
	)
}

// placeFor makes an empty file or directory for a bind.
func placeFor(b boot.Bind, root string) error {
	info, err := os.Stat(b.From)
	if err != nil {
		return err
	}
	to := filepath.Join(root, b.To)
	if info.IsDir() {
		return os.MkdirAll(to, 0o755)
	}
	return os.WriteFile(to, nil, 0o755)
}

// copyTree copies a file, a link or a directory; what is not there is no error.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(dst, 0o755)
		case e.Type() == fs.ModeSymlink:
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(link, dst)
		case e.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(dst, b, 0o644)
		default:
			return nil
		}
	})
}

// files are the configuration of the node's services by path.
func (n *Node) files() (map[string]string, error) {
	all := map[string]string{
		"etc/containerd/config.toml":                 n.containerdConfig(),
		"etc/containerd/certs.d/_default/hosts.toml": fmt.Sprintf("server = %q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+RegistryAddress),
		"etc/cni/net.d/10-cluster.conflist":          n.networkConfig(),
		"etc/kubernetes/pki/ca.crt":                  string(n.c.pki.caPEM),
		"etc/kubernetes/proxy.yaml":                  proxyConfig(n.Name),
	}
	kubelet, err := n.kubeletConfig()
	if err != nil {
		return nil, err
	}
	all["var/lib/kubelet/config.yaml"] = kubelet
	for _, u := range []struct{ name, user, group string }{
		{"kubelet", "system:node:" + n.Name, "system:nodes"}, {"proxy", "system:kube-proxy", ""},
	} {
		id, err := n.c.pki.issue(u.user, u.group, n.Name, n.IP)
		if err != nil {
			return nil, err
		}
		all["etc/kubernetes/pki/"+u.name+".crt"], all["etc/kubernetes/pki/"+u.name+".key"] = string(id.cert), string(id.key)
		if err := n.c.pki.kubeconfig(filepath.Join(n.root(), "etc/kubernetes", u.name+".conf"), apiURL, id); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// containerdConfig is as short as it can be: defaults are what nodes in the field
// have. This machine's root may lack CAP_SYS_RESOURCE, without which no process can be
// spared by the OOM killer; AppArmor's parser is not on every machine whose kernel has
// it.
func (n *Node) containerdConfig() string {
	if n.o.Containerd == "" || n.o.Containerd == "2.4" {
		return `version = 3
[plugins.'io.containerd.cri.v1.images']
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '` + pauseImage + `'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
`
	}
	const v2 = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
`
	if n.o.Containerd == "1.4" { // hosts.toml came with 1.5
		return v2 + `  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
    endpoint = ["http://` + RegistryAddress + `"]
`
	}
	return v2 + `  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
`
}

// networkConfig routes every packet, so that none passes a bridge where the kernel
// would not translate addresses of services.
func (n *Node) networkConfig() string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "cluster", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}
]}
`, podNet(n.index))
}

func proxyConfig(name string) string {
	return `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /etc/kubernetes/proxy.conf}
clusterCIDR: ` + podsNet + `
hostnameOverride: ` + name + `
# These limits are the whole machine's.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
}

// kubeletConfig is the kubelet's, with what the options replace.
func (n *Node) kubeletConfig() (string, error) {
	const pki = "/etc/kubernetes/pki/"
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true}, "x509": map[string]any{"clientCAFile": pki + "ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   pki + "kubelet.crt", "tlsPrivateKeyFile": pki + "kubelet.key",
		"clusterDomain": "cluster.local", "clusterDNS": []string{"10.96.0.10"},
		// The machine is what it is: cgroups of either version, no systemd, swap or not.
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "failSwapOn": false, "oomScoreAdj": 0,
		// Reports every two seconds, for a control plane that gives up after eight.
		"nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "2s", "nodeLeaseDurationSeconds": 8,
		// The disk is the machine's, and how full it is nothing that the node can change.
		"evictionHard":                map[string]any{"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	}
	maps.Copy(config, n.o.Kubelet)
	b, err := yaml.Marshal(config)
	return string(b), err
}

// config is what the node's first process does.
func (n *Node) config() boot.Config {
	const socket = "/run/containerd/containerd.sock"
	c := boot.Config{
		Name: n.Name, Root: n.root(), Image: n.image(), Binds: n.binds(), Fuse: !n.o.NoFuse,
		Services: []boot.Service{{Name: "containerd", Args: []string{"/usr/local/bin/containerd"}}},
	}
	if n.o.NoKubelet {
		return c
	}
	c.Services = append(c.Services,
		boot.Service{Name: "kubelet", Await: socket, Args: append([]string{
			"/usr/local/bin/kubelet", "--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
			"--hostname-override=" + n.Name, "--node-ip=" + n.IP,
		}, n.o.KubeletFlags...)},
		boot.Service{Name: "kube-proxy", Args: []string{"/usr/local/bin/kube-proxy", "--config=/etc/kubernetes/proxy.yaml"}},
	)
	return c
}
