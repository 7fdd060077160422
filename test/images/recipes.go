package images

import (
	"context"
	"runtime"
)

// recipe is one image of Debian packages.
type recipe struct {
	layers     []layerRecipe
	docker     bool // Docker schema 2 media types instead of OCI's
	env        map[string]string
	entrypoint []string
	spec       Spec
	operations []Operation // where there are several; the first is the default, with spec
}

// layerRecipe is one layer: what the packages need that the layers below lack,
// and then our files.
type layerRecipe struct {
	name     string
	packages []string
	alone    bool // the packages without what they depend on
	files    []file
	made     content // nil for none
}

// content is what a layer has beside packages and listed files. What fmt prints of
// it is part of the layer's cache key, so it must say all that decides its bytes.
type content interface {
	write(ctx context.Context, b *builder, w *layerWriter) error
	level() int // of the layer's compression, as gzip has them
}

// file is one file of ours: a symlink when link is set, a directory when the
// path ends in a slash, a copy of another file of the layer when copy is set.
type file struct {
	path, text, link, copy string
	mode                   int64 // 0 means 0644, or 0755 for a directory
}

// triplet names the directory of shared libraries, as Debian's multiarch does.
func triplet() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}

// base has the packages of Debian's own slim image. The symlinks of the merged
// /usr come from no package; accounts are made by a script of base-passwd.
func base() layerRecipe {
	return layerRecipe{
		name: "base",
		packages: []string{
			"apt", "base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debian-archive-keyring",
			"debianutils", "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin",
			"login", "mount", "ncurses-base", "ncurses-bin", "passwd", "perl-base", "sed", "sysvinit-utils", "tar",
			"tzdata", "usr-is-merged", "util-linux",
		},
		files: []file{
			{path: "bin", link: "usr/bin"}, {path: "sbin", link: "usr/sbin"},
			{path: "lib", link: "usr/lib"}, {path: "lib64", link: "usr/lib64"},
			{path: "etc/passwd", copy: "usr/share/base-passwd/passwd.master"},
			{path: "etc/group", copy: "usr/share/base-passwd/group.master"},
			{path: "etc/nsswitch.conf", text: "passwd: files\ngroup: files\nhosts: files dns\n"},
			{path: "usr/bin/awk", link: "mawk"},
		},
	}
}

func recipes() map[string]recipe {
	return map[string]recipe{
		"hello-static": helloStatic(), "deb-slim": debSlim(),
		"python": python(), "numpy": numpy(), "golang": golang(),
		"nginx": nginx(), "redis": redis(), "postgres": postgres(), "php-apache": phpApache(),
		"py-sci": pySci(), "node-app": nodeApp(), "java-app": javaApp(), "gcc": gcc(),
		"ml-2g": weights(), "many-small": manySmall(),
	}
}

// helloStatic is one static program: what a start costs beside the data.
func helloStatic() recipe {
	const script = `echo "hello from $((6 * 7))"
exec /bin/busybox sleep 1000000
`
	return recipe{
		layers: []layerRecipe{
			{name: "busybox", packages: []string{"busybox-static"}, alone: true, files: []file{{path: "bin", link: "usr/bin"}}},
			{name: "hello-static-app", files: []file{{path: "app/"}, {path: "app/hello.sh", text: script}}},
		},
		entrypoint: []string{"/bin/busybox", "sh", "/app/hello.sh"},
		spec:       Spec{Repository: "hello-static", Line: "hello from 42"},
	}
}

// debSlim is the base alone, with a shell that calls a few of its programs.
func debSlim() recipe {
	const script = `sum=0
for ((i = 1; i <= 100; i++)); do ((sum += i)); done
echo "sum $sum sorted $(printf '%s\n' c a b | sort | tr -d '\n')"
exec sleep infinity
`
	return recipe{
		layers:     []layerRecipe{base(), {name: "deb-slim-app", files: []file{{path: "app/"}, {path: "app/hello.sh", text: script}}}},
		entrypoint: []string{"bash", "/app/hello.sh"},
		spec:       Spec{Repository: "deb-slim", Line: "sum 5050 sorted abc"},
	}
}
