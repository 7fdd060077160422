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
	// Credentials, if set, is asked first for the credentials of the repository
	// repo ("team/app") on host, best first; none mean that it knows none.
	Credentials func(ctx context.Context, host, repo string) ([]Credential, error)
	// CredentialsDir has files *.json in the format of docker's config.json,
	// whose keys may have a path and wildcards as those of image pull secrets
	// may. They are asked before the plugins; empty: none.
	CredentialsDir string
	// ProviderConfig is the configuration of kubelet's credential provider
	// plugins, a file or a directory, and ProviderBinDir where the plugins are.
	// They are asked before the docker config; empty: none.
	ProviderConfig, ProviderBinDir string
	// Report, if set, is told of trouble with credentials, and with a nil error
	// of its end; LastErrors.Report fits. repo is the repository on host, or,
	// where host is empty, the file or plugin that is at fault. The errors have
	// nothing secret in them. It is called in parallel, and must be quick.
	Report func(host, repo string, err error)
	// Fetch has the limits and hooks of all blobs. Its Endpoints, Size, Name
	// and Stale are ignored.
	Fetch fetch.Config
	// Logger gets warnings about the configuration [slog.Default()].
	Logger *slog.Logger
}

// Resolver finds blobs and manifests. It may be used in parallel; blobs of one
// host share connections, those of one repository share credentials.
type Resolver struct {
	opts   Options
	keys   *keychain
	realms realms

	life context.Context // of what runs in the background
	end  context.CancelFunc

	mu       sync.Mutex
	hosts    map[string][]docker.RegistryHost // by host of the reference; without credentials
	repos    map[string]*repository           // by name of the repository, with its host
	memories map[string]*memory               // by host that is asked and repository on it

	referrers apis

	saidMu sync.Mutex
	said   map[[2]string]string // what was reported and not taken back
}

// New returns a Resolver. It reads nothing yet. The caller closes it.
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
	r := &Resolver{
		opts: o, hosts: map[string][]docker.RegistryHost{}, repos: map[string]*repository{},
		memories: map[string]*memory{}, said: map[[2]string]string{},
	}
	r.life, r.end = context.WithCancel(context.Background())
	place := func(what string, err error) { r.report("", what, err) }
	r.keys = &keychain{
		ask: o.Credentials, docker: o.DockerConfig,
		dir:     &credentialsDir{path: o.CredentialsDir, log: o.Logger, report: place, files: map[string]*credentialsFile{}},
		plugins: &plugins{config: o.ProviderConfig, bin: o.ProviderBinDir, log: o.Logger, report: place},
	}
	return r
}

// Close ends what is done in the background: credentials are not renewed any more.
func (r *Resolver) Close() {
	r.end()
	r.keys.plugins.close()
}

// report tells of trouble, and of its end. Trouble with a source of credentials
// is logged when it is new; what a registry refuses is the error of a read, which
// its caller logs.
func (r *Resolver) report(host, repo string, err error) {
	r.saidMu.Lock()
	key := [2]string{host, repo}
	old, again := r.said[key]
	if err == nil {
		delete(r.said, key)
	} else {
		r.said[key] = err.Error()
	}
	r.saidMu.Unlock()
	switch {
	case host != "":
	case err != nil && err.Error() != old:
		r.opts.Logger.Warn("source of credentials", "source", repo, "error", err)
	case err == nil && again:
		r.opts.Logger.Info("source of credentials is good again", "source", repo)
	}
	if r.opts.Report != nil && (err != nil || again) {
		r.opts.Report(host, repo, err)
	}
}

// memoryOf returns what is remembered of a repository on a host. The lock is held.
func (r *Resolver) memoryOf(name string) *memory {
	if r.memories[name] == nil {
		r.memories[name] = &memory{}
	}
	return r.memories[name]
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
		r.authorize(&repo.hosts[i], repo.path)
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
