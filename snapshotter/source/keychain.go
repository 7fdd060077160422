package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// dockerHub is the key of Docker Hub in docker's config.json, whatever name its
// registry goes by in references and requests.
const dockerHub = "https://index.docker.io/v1/"

// credentials returns the user name and password for host, both empty if there
// are none. An empty user with a secret is an identity token, as containerd's
// authorizer wants it.
func (r *Resolver) credentials(host string) (user, secret string, err error) {
	if f := r.opts.Credentials; f != nil {
		if user, secret, err = f(host); err != nil || secret != "" {
			return user, secret, err
		}
	}
	return fromDockerConfig(r.opts.DockerConfig, host)
}

// fromDockerConfig reads path, or path/config.json, each time anew: credential
// providers rewrite the file. Credential helpers named in it are run.
func fromDockerConfig(path, host string) (user, secret string, err error) {
	if path == "" {
		return "", "", nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, config.ConfigFileName)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("docker config: %w", err)
	}
	c, err := config.LoadFromReader(f)
	_ = f.Close() // only read
	if err != nil {
		return "", "", fmt.Errorf("docker config %s: %w", path, err)
	}
	key := host
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		key = dockerHub
	}
	a, err := c.GetAuthConfig(key)
	if err != nil {
		return "", "", fmt.Errorf("docker config %s: credentials of %s: %w", path, host, fetch.Redact(err))
	}
	if a.IdentityToken != "" {
		return "", a.IdentityToken, nil
	}
	return a.Username, a.Password, nil
}
