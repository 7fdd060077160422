package source

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// Options says where registries and credentials are described. The zero value
// is what containerd and docker use.
type Options struct {
	// HostsDirs are directories with <host>/hosts.toml or <host>/*.crt, searched
	// in turn [/etc/containerd/certs.d, /etc/docker/certs.d].
	HostsDirs []string
	// DockerConfig is docker's config.json, or the directory with it
	// [$DOCKER_CONFIG, else ~/.docker].
	DockerConfig string
	// PlainHTTP are hosts, with their port, that are spoken to without TLS.
	// Loopback hosts are tried with and without in any case.
	PlainHTTP []string
	// Credentials, if set, is asked before the docker config for the user name
	// and password of a host; two empty strings mean that it knows none. An
	// empty user with a secret is an identity token.
	Credentials func(host string) (user, secret string, err error)
	// Fetch has the limits and hooks of all blobs. Its Endpoints, Size, Name
	// and Stale are ignored.
	Fetch fetch.Config
	// Logger gets warnings about the configuration [slog.Default()].
	Logger *slog.Logger
}

// Resolver finds blobs and manifests. It may be used in parallel; blobs of one
// host share connections, those of one repository share credentials.
type Resolver struct {
	opts Options

	mu    sync.Mutex
	hosts map[string][]docker.RegistryHost // by host of the reference; without credentials
	repos map[string]*repository           // by name of the repository, with its host
}

// New returns a Resolver. It reads nothing yet.
func New(o Options) *Resolver {
	if o.HostsDirs == nil {
		o.HostsDirs = []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
	}
	if o.DockerConfig == "" {
		o.DockerConfig = defaultDockerConfig()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Resolver{opts: o, hosts: map[string][]docker.RegistryHost{}, repos: map[string]*repository{}}
}

// defaultDockerConfig is where docker itself would look, "" without a home.
func defaultDockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

// Open returns the blob d of the repository that ref names. It does no I/O if
// size, the blob's length in bytes, is known; for size <= 0 it asks the registry.
func (r *Resolver) Open(ctx context.Context, ref string, d digest.Digest, size int64) (fetch.Blob, error) {
	named, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest of a layer of %s: %w", ref, err)
	}
	cfg := r.opts.Fetch
	cfg.Size, cfg.Name = size, reference.Domain(named)
	var mu sync.Mutex
	var repo *repository // the one whose endpoints are in use
	cfg.Endpoints = func(context.Context) ([]fetch.Endpoint, error) {
		now, err := r.repository(named)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		repo = now
		return now.endpoints(d)
	}
	cfg.Stale = func() {
		mu.Lock()
		defer mu.Unlock()
		r.forget(repo)
	}
	if size <= 0 {
		if cfg.Size, err = fetch.Probe(ctx, cfg); err != nil {
			return nil, fmt.Errorf("layer %s of %s: %w", d, ref, err)
		}
	}
	return fetch.New(cfg), nil
}

// parseRef reads a reference as containerd's CRI plugin and docker do: "nginx"
// is docker.io/library/nginx:latest.
func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%q is no image name such as registry.example.com/team/app:v1: %w", ref, err)
	}
	return named, nil
}

// repository is one repository on all its hosts.
type repository struct {
	name  string // "docker.io/library/nginx"
	host  string // "docker.io", as references have it
	path  string // "library/nginx"
	hosts []docker.RegistryHost
}

// repository returns the hosts of a repository, reading the configuration the
// first time.
func (r *Resolver) repository(named reference.Named) (*repository, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if repo := r.repos[named.Name()]; repo != nil {
		return repo, nil
	}
	repo := &repository{name: named.Name(), host: reference.Domain(named), path: reference.Path(named)}
	hosts, ok := r.hosts[repo.host]
	if !ok {
		var err error
		if hosts, err = r.configure(repo.host); err != nil {
			return nil, fmt.Errorf("configuration of registry %s: %w", repo.host, err)
		}
		r.hosts[repo.host] = hosts
	}
	// Credentials are per repository, because a token is.
	repo.hosts = slices.Clone(hosts)
	for i := range repo.hosts {
		repo.hosts[i].Authorizer = newAuth(repo.hosts[i], repo.path, r.credentials)
	}
	r.repos[repo.name] = repo
	return repo, nil
}

// forget drops what is known of a repository and its host, unless that was
// found anew already.
func (r *Resolver) forget(repo *repository) {
	if repo == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.repos[repo.name] != repo {
		return
	}
	delete(r.repos, repo.name)
	delete(r.hosts, repo.host)
	for _, h := range repo.hosts {
		h.Client.CloseIdleConnections()
	}
}

// endpoints are where the blob d is served, in the order of the configuration.
func (repo *repository) endpoints(d digest.Digest) ([]fetch.Endpoint, error) {
	var eps []fetch.Endpoint
	for _, h := range repo.hosts {
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, repo.path, "blobs", d.String())}
		if isMirror(repo.host, h.Host) {
			u.RawQuery = url.Values{"ns": {repo.host}}.Encode()
		}
		eps = append(eps, fetch.Endpoint{
			URL: u.String(), Client: h.Client, Header: userAgent(h.Header),
			Authorize: h.Authorizer.Authorize, Challenge: h.Authorizer.AddResponses,
		})
	}
	if len(eps) == 0 {
		return nil, fmt.Errorf("registry %s: no host is configured to pull from", repo.host)
	}
	return eps, nil
}

// isMirror says whether host serves the registry under another name, and so has
// to be told which (containerd, docs/hosts.md, "namespace").
func isMirror(registry, host string) bool {
	return host != registry && (registry != "docker.io" || host != "registry-1.docker.io")
}

// userAgent returns h with our name, unless the configuration has another.
func userAgent(h http.Header) http.Header {
	h = h.Clone()
	if h == nil {
		h = http.Header{}
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "apparate")
	}
	return h
}
