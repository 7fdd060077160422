package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// dockerHub is the key of Docker Hub in docker's config.json, whatever name its
// registry goes by in references and requests.
const dockerHub = "https://index.docker.io/v1/"

// dockerCandidate is what the docker config path, or path/config.json, may know of
// host. It is read each time anew: people and timers rewrite the file. Credential
// helpers named in it run only when they are needed.
func dockerCandidate(path, host string) (candidate, bool) {
	if path == "" {
		return candidate{}, false
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, config.ConfigFileName)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return candidate{}, false
	}
	if err != nil {
		return known(path, nil, fmt.Errorf("docker config: %w", err)), true
	}
	c, err := config.LoadFromReader(f)
	_ = f.Close() // only read
	if err != nil {
		return known(path, nil, fmt.Errorf("docker config %s: %w", path, err)), true
	}
	key := host
	if canonicalHost(host) == "docker.io" {
		key = dockerHub
	}
	get := func(context.Context) ([]Credential, error) { return fromDockerConfig(c, path, host, key) }
	if c.CredentialsStore != "" || c.CredentialHelpers[key] != "" {
		return candidate{origin: path, get: get}, true
	}
	creds, err := get(context.Background())
	return known(path, creds, err), len(creds) > 0 || err != nil
}

func fromDockerConfig(c *configfile.ConfigFile, path, host, key string) ([]Credential, error) {
	a, err := c.GetAuthConfig(key)
	if err != nil {
		return nil, fmt.Errorf("docker config %s: credentials of %s: %w", path, host, fetch.Redact(err))
	}
	switch {
	case a.IdentityToken != "":
		return []Credential{{Secret: a.IdentityToken}}, nil
	case a.Password != "":
		return []Credential{{a.Username, a.Password}}, nil
	}
	return nil, nil
}
