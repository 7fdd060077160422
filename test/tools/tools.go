// Package tools provides the external programs that the demo and the tests run:
// containerd with its shim and ctr, also old ones, runc, a registry, Kubernetes,
// network plugins, and helm.
//
// The Go programs are built from the Go module proxy at the versions that the
// modules below hack pin; what needs a C compiler is a package of Debian, unpacked.
// Everything is cached under $XDG_CACHE_HOME/apparate/tools, in directories named by
// version and by a hash of what they were made from, so a changed pin or Go version
// builds anew and nothing else does. Callers in
// several processes may ask at once: one builds, the others wait.
package tools

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// The programs that Ensure knows.
const (
	Containerd = "containerd"
	Shim       = "containerd-shim-runc-v2"
	Ctr        = "ctr"
	Registry   = "registry"
	Runc       = "runc"
	// ContainerdCRI is containerd with the interface that the kubelet speaks; the
	// shim and ctr are beside it, as they are beside the older ones.
	ContainerdCRI = "containerd-cri"
	// Containerd17, Containerd16 and Containerd14 are what nodes in the field run: the
	// last release of containerd 1.7, Debian 12's package and Debian 11's.
	Containerd17 = "containerd-1.7"
	Containerd16 = "containerd-1.6"
	Containerd14 = "containerd-1.4"
	// CNI is the network plugin of nodes; those that it works with are beside it.
	CNI = "ptp"
	// Nft is Debian's, with the libraries it needs, for kube-proxy.
	Nft = "nft"
	// Kube is Kubernetes, etcd and kubectl in one program. Beside it are links
	// by the names of its parts; see KubeParts.
	Kube = "kube"
	// Helm installs the chart.
	Helm = "helm"
	// Stargz is stargz-snapshotter with its converter, as test/bench/stargz makes it.
	Stargz = "stargz"
	// Soci and SociSnapshotter are SOCI's command and its daemon. They need a C compiler.
	Soci            = "soci"
	SociSnapshotter = "soci-snapshotter-grpc"
	// MkfsErofs is Debian 13's: containerd's EROFS snapshotter wants 1.8.2 or newer.
	MkfsErofs = "mkfs.erofs"
	// Igzip and Unpigz decompress gzip in a process of their own, for whoever looks for
	// them in PATH: containerd takes the first of these that it finds.
	Igzip  = "igzip"
	Unpigz = "unpigz"
)

// All lists the programs of a node, in the order in which they start.
func All() []string { return []string{Registry, Containerd, Shim, Ctr, Runc} }

// Cluster lists the programs of a Kubernetes cluster.
func Cluster() []string {
	return []string{Registry, Runc, Nft, CNI, ContainerdCRI, Kube, Helm, Containerd17, Containerd16, Containerd14}
}

// KubeParts are the names under which Kube can be called.
func KubeParts() []string {
	return []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}
}

// group is what is built and cached as one: the commands of one module.
type group struct {
	name     string // of the cache directory
	module   string // whose version names the directory
	programs []string
	dir      string   // of the module that pins it, relative to hack
	packages []string // what to build, relative to dir
	sources  []string // our own files that the result depends on
	tags     string
	// cgo names the Debian package with the headers and the static library that the
	// group is compiled with; empty for Go alone.
	cgo string
	// version are the packages whose variables are set by the linker to the
	// module's version, as its own build does.
	version func(v string) string
	built   string // the program that links are further names of
	links   []string
}

// nodeTags leave out what the demo and the tests do not use: snapshotters that
// need C libraries, and the Kubernetes interface, a third of containerd's code.
const (
	nodeTags = criTags + ",no_cri"
	criTags  = "no_btrfs,no_zfs,no_devmapper"
)

func groups() []group {
	const containerd, distribution = "github.com/containerd/containerd/v2", "github.com/distribution/distribution/v3"
	const containerd17, plugins = "github.com/containerd/containerd", "github.com/containernetworking/plugins"
	const helm, soci = "helm.sh/helm/v4", "github.com/awslabs/soci-snapshotter"
	commands := func(module string) (all []string) {
		for _, c := range []string{Containerd, Shim, Ctr} {
			all = append(all, module+"/cmd/"+c)
		}
		return all
	}
	variable := func(module string) func(string) string {
		return func(v string) string { return " -X " + module + "/version.Version=" + v }
	}
	return []group{
		{
			name: "containerd", module: containerd, dir: "tools", tags: nodeTags,
			programs: []string{Containerd, Shim, Ctr},
			packages: commands(containerd),
			version:  variable(containerd),
		},
		{
			name: "registry", module: distribution, dir: "tools", tags: nodeTags,
			programs: []string{Registry}, packages: []string{"./registry"},
			sources: []string{"registry/main.go"}, version: variable(distribution),
		},
		{
			name: "kube", module: "k8s.io/kubernetes", dir: "kube",
			programs: []string{Kube}, packages: []string{"."}, sources: []string{"main.go"},
			version: kubeVersion, built: Kube, links: KubeParts(),
		},
		{
			name: "containerd-cri", module: containerd, dir: "tools", tags: criTags,
			programs: []string{ContainerdCRI}, packages: commands(containerd),
			version: variable(containerd), built: Containerd, links: []string{ContainerdCRI},
		},
		{
			name: "containerd17", module: containerd17, dir: "containerd17", tags: criTags,
			programs: []string{Containerd17}, packages: commands(containerd17),
			version: variable(containerd17), built: Containerd, links: []string{Containerd17},
		},
		{
			name: "helm", module: helm, dir: "helm",
			programs: []string{Helm}, packages: []string{helm + "/cmd/helm"},
			version: func(v string) string { return " -X " + helm + "/internal/version.version=" + v },
		},
		{
			name: "cni", module: plugins, dir: "tools", tags: nodeTags,
			programs: []string{CNI}, packages: []string{
				plugins + "/plugins/main/ptp", plugins + "/plugins/main/loopback", plugins + "/plugins/ipam/host-local", plugins + "/plugins/meta/portmap",
			},
			version: func(v string) string {
				return " -X " + plugins + "/pkg/utils/buildversion.BuildVersion=" + v
			},
		},
		{
			name: "stargz", module: "github.com/containerd/stargz-snapshotter", dir: "../test/bench/stargz",
			programs: []string{Stargz}, packages: []string{"."}, sources: []string{"main.go", "serve.go", "record.go", "convert.go"},
			version: variable("github.com/containerd/stargz-snapshotter"),
		},
		{
			name: "soci", module: soci, dir: "../test/bench/soci", cgo: "zlib1g-dev",
			programs: []string{Soci, SociSnapshotter}, packages: []string{soci + "/cmd/soci", soci + "/cmd/soci-snapshotter-grpc"},
			version: variable(soci),
		},
	}
}

// kubeVersion sets what Kubernetes says of itself: without it the server claims to
// be v0.0.0, and clients that look at the version go wrong.
func kubeVersion(v string) string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	var flags string
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean", p, v, major, minor)
	}
	return flags
}

// CacheDir returns the directory that holds everything the demo and the tests
// build or download: $XDG_CACHE_HOME/apparate or ~/.cache/apparate.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a cache directory (set XDG_CACHE_HOME): %w", err)
	}
	return filepath.Join(dir, "apparate"), nil
}

// Ensure returns the path of each named program by its name, building or
// downloading what the cache lacks. Progress lines are written to progress.
func Ensure(ctx context.Context, progress io.Writer, names ...string) (map[string]string, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, name := range names {
		if i := slices.IndexFunc(packages(), func(p unpacked) bool { return p.name == name }); i >= 0 {
			if paths[name], err = ensurePackage(ctx, progress, cache, packages()[i]); err != nil {
				return nil, err
			}
			continue
		}
		if paths[name] != "" {
			continue
		}
		i := slices.IndexFunc(groups(), func(g group) bool { return slices.Contains(g.programs, name) })
		if i < 0 {
			return nil, fmt.Errorf("no program is called %q: there are %s", name, strings.Join(All(), ", "))
		}
		g := groups()[i]
		dir, err := ensureGroup(ctx, progress, cache, g)
		if err != nil {
			return nil, err
		}
		for _, p := range g.programs {
			paths[p] = filepath.Join(dir, p)
		}
	}
	return paths, nil
}

func ensureGroup(ctx context.Context, progress io.Writer, cache string, g group) (string, error) {
	p, err := locate(ctx, cache, g)
	if err != nil {
		return "", err
	}
	return p.dir, Make(p.dir, func(tmp string) error {
		args := append([]string{"-tags", g.tags, "-ldflags", "-s -w" + g.version(p.version)}, g.packages...)
		var env []string
		if g.cgo != "" {
			if env, err = cgoEnv(ctx, progress, cache, g.cgo); err != nil {
				return err
			}
		}
		if err := goBuild(ctx, progress, g.name+" "+p.version, p.source, tmp+string(filepath.Separator), env, args...); err != nil {
			return err
		}
		for _, l := range g.links {
			if err := os.Symlink(g.built, filepath.Join(tmp, l)); err != nil {
				return err
			}
		}
		return nil
	})
}

// place is where a group is built and kept.
type place struct{ source, dir, version string }

// locate reads the pinned version of a group and hashes what it is made from.
func locate(ctx context.Context, cache string, g group) (place, error) {
	root, err := Root(ctx)
	if err != nil {
		return place{}, err
	}
	p := place{source: filepath.Join(root, "hack", g.dir)}
	hash := sha256.New()
	hash.Write(fmt.Appendln(nil, runtime.Version(), runtime.GOARCH, g.tags))
	for _, f := range append([]string{"go.mod", "go.sum"}, g.sources...) {
		b, err := os.ReadFile(filepath.Join(p.source, f))
		if err != nil {
			return place{}, err
		}
		if f == "go.mod" {
			p.version = moduleVersion(string(b), g.module)
		}
		hash.Write(fmt.Appendf(nil, "%s %x\n", f, sha256.Sum256(b)))
	}
	if p.version == "" {
		return place{}, fmt.Errorf("hack/%s/go.mod does not require %s", g.dir, g.module)
	}
	p.dir = filepath.Join(cache, "tools", fmt.Sprintf("%s-%s-%x", g.name, p.version, hash.Sum(nil)[:4]))
	return p, nil
}

// Download fetches the modules of the named programs that are still to be built,
// so that the network works while the processor is busy with something else.
func Download(ctx context.Context, names ...string) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	for _, g := range groups() {
		if !slices.Contains(names, g.programs[0]) {
			continue
		}
		p, err := locate(ctx, cache, g)
		if err != nil {
			return err
		}
		if exists(p.dir) {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-deps", "-tags", g.tags}, g.packages...)...)
		cmd.Dir, cmd.Env = p.source, buildEnv()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("downloading the modules of %s: %w: %s", g.name, err, out)
		}
	}
	return nil
}

// moduleVersion finds the version of module in the text of a go.mod.
func moduleVersion(mod, module string) string {
	for line := range strings.Lines(mod) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) >= 2 && f[0] == module {
			return f[1]
		}
	}
	return ""
}

// Make fills the directory dir by calling fill with an empty directory beside
// it and moving that into place, so dir is there whole or not at all. Where dir
// exists nothing happens; of several callers, in any process, one fills.
func Make(dir string, fill func(tmp string) error) (err error) {
	if exists(dir) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if exists(dir) { // another caller filled it while we waited
		return nil
	}
	tmp := dir + ".partial"
	if err := os.RemoveAll(tmp); err != nil { // of a caller that was killed
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, dir)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Root returns the top directory of this module, for callers below it.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/apparate/apparate").Output()
	if err != nil {
		return "", fmt.Errorf("finding the top of the repository (run this inside it): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
