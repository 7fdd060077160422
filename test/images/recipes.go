package images

import "runtime"

// recipe is one image of Debian packages.
type recipe struct {
	layers     []layerRecipe
	docker     bool // Docker schema 2 media types instead of OCI's
	env        map[string]string
	entrypoint []string
	spec       Spec
}

// layerRecipe is one layer: what the packages need that the layers below lack,
// and then our files.
type layerRecipe struct {
	name     string
	packages []string
	files    []file
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
	return map[string]recipe{"nginx": nginx(), "python": python(), "golang": golang()}
}

const nginxPage = "It works: served from an image that was assembled from packages.\n"

// nginx is a server whose start script writes its configuration, as the common
// nginx images do.
func nginx() recipe {
	const script = `#!/bin/sh
set -e
sed "s/@PORT@/${PORT:-8080}/" /etc/nginx/nginx.conf.template > /run/nginx.conf
exec nginx -c /run/nginx.conf -g 'daemon off;'
`
	const conf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  include /etc/nginx/mime.types;
  access_log off;
  server {
    listen 127.0.0.1:@PORT@;
    root /srv/www;
  }
}
`
	return recipe{
		layers: []layerRecipe{base(), {name: "nginx", packages: []string{"nginx", "openssl", "ca-certificates"}}, {name: "nginx-site", files: []file{
			{path: "docker-entrypoint.sh", text: script, mode: 0o755},
			{path: "etc/nginx/nginx.conf.template", text: conf},
			{path: "srv/www/"},
			{path: "srv/www/index.html", text: nginxPage},
		}}},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "nginx", Path: "/index.html", Body: nginxPage},
	}
}

// python computes with numpy, which reads a few hundred of its files.
func python() recipe {
	const program = `import time
import numpy as np

a = np.arange(10000, dtype=np.int64).reshape(100, 100)
print("trace", int(np.trace(a @ a.T)), "sum", round(np.linalg.solve(2 * np.eye(50), np.ones(50)).sum(), 6), flush=True)
while True:
    time.sleep(60)
`
	lib := "usr/lib/" + triplet() + "/"
	return recipe{
		docker: true,
		layers: []layerRecipe{base(), {name: "python", packages: []string{"python3"}}, {
			name: "numpy", packages: []string{"python3-numpy"},
			files: []file{ // the packages' scripts choose among implementations
				{path: lib + "libblas.so.3", link: "blas/libblas.so.3"},
				{path: lib + "liblapack.so.3", link: "lapack/liblapack.so.3"},
			},
		}, {name: "python-app", files: []file{{path: "app/"}, {path: "app/main.py", text: program}}}},
		env:        map[string]string{"PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"},
		entrypoint: []string{"python3", "/app/main.py"},
		// The sum of the squares below 10000, and fifty halves.
		spec: Spec{Repository: "python", Line: "trace 333283335000 sum 25.0"},
	}
}

// golang compiles and runs a program: few of its many files are read.
func golang() recipe {
	const program = `package main

import (
	"fmt"
	"time"
)

func main() {
	sum := 0
	for i := range [1000]int{} {
		sum += i
	}
	fmt.Println("sum", sum)
	time.Sleep(time.Hour)
}
`
	return recipe{
		layers: []layerRecipe{base(), {name: "golang", packages: []string{"golang-go"}}, {name: "golang-app", files: []file{
			{path: "src/"}, {path: "src/main.go", text: program},
		}}},
		env:        map[string]string{"CGO_ENABLED": "0", "GOCACHE": "/tmp/gocache", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"},
		entrypoint: []string{"go", "run", "/src/main.go"},
		spec:       Spec{Repository: "golang", Line: "sum 499500"},
	}
}
