package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// maxPluginConfig is the longest configuration of plugins that is read, in bytes.
const maxPluginConfig = 1 << 20

// pluginConfig is one provider of a CredentialProviderConfig, the file that
// kubelet gets as --image-credential-provider-config (kubernetes.io, "Configure a
// kubelet image credential provider"; the API is kubelet.config.k8s.io).
type pluginConfig struct {
	Name       string `json:"name"`
	APIVersion string `json:"apiVersion"`
	// MatchImages are the patterns of repositories that the plugin is asked for.
	MatchImages []string `json:"matchImages"`
	// DefaultCacheDuration is how long an answer without a duration of its own holds.
	DefaultCacheDuration *duration `json:"defaultCacheDuration"`
	Args                 []string  `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	TokenAttributes *struct {
		RequireServiceAccount *bool `json:"requireServiceAccount"`
	} `json:"tokenAttributes"`

	match []pattern
}

// duration is written as Go writes one, "12h0m0s".
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return errors.New("a duration is written as 12h, 30m or 90s")
	}
	*d = duration(v)
	return nil
}

// protocols are the versions of the exec protocol; they differ in name only, as
// far as we use them.
var protocols = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}

// errNeedsPod says that a plugin wants the token of a pod's service account. The
// daemon reads for the node, not for one pod.
var errNeedsPod = errors.New("tokenAttributes: it wants a service account's token, which only kubelet has: set requireServiceAccount: false, or use another way to log in")

// parsePluginConfig reads one file, YAML or JSON.
func parsePluginConfig(b []byte) ([]pluginConfig, error) {
	var file struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Providers  []pluginConfig `json:"providers"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("not a CredentialProviderConfig: %w", err)
	}
	group, version, _ := strings.Cut(file.APIVersion, "/")
	if file.Kind != "CredentialProviderConfig" || group != "kubelet.config.k8s.io" || !slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version) {
		return nil, fmt.Errorf("apiVersion %q and kind %q are not those of kubelet.config.k8s.io/v1 CredentialProviderConfig", file.APIVersion, file.Kind)
	}
	for i := range file.Providers {
		if err := file.Providers[i].check(); err != nil {
			return nil, fmt.Errorf("providers[%d]: %w", i, err)
		}
	}
	return file.Providers, nil
}

func (p *pluginConfig) check() error {
	switch {
	case p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ \x00"):
		return fmt.Errorf("name %q is not that of a program in the plugins' directory", p.Name)
	case !slices.Contains(protocols, p.APIVersion):
		return fmt.Errorf("apiVersion %q of %s is none of %s", p.APIVersion, p.Name, strings.Join(protocols, ", "))
	case len(p.MatchImages) == 0:
		return fmt.Errorf("matchImages of %s is empty: it would never be asked", p.Name)
	case p.DefaultCacheDuration == nil:
		return fmt.Errorf("defaultCacheDuration of %s is missing", p.Name)
	case *p.DefaultCacheDuration < 0:
		return fmt.Errorf("defaultCacheDuration of %s is negative", p.Name)
	}
	for _, e := range p.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.Contains(e.Value, "\x00") {
			return fmt.Errorf("env of %s has a name or value that no environment can have", p.Name)
		}
	}
	for _, a := range p.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("args of %s have a NUL byte", p.Name)
		}
	}
	for _, m := range p.MatchImages {
		q, err := parsePattern(m)
		if err != nil {
			return fmt.Errorf("matchImages of %s: %q: %w", p.Name, m, err)
		}
		p.match = append(p.match, q)
	}
	return nil
}

// usable says why the plugin cannot be run here.
func (p *pluginConfig) usable() error {
	if t := p.TokenAttributes; t != nil && (t.RequireServiceAccount == nil || *t.RequireServiceAccount) {
		return errNeedsPod
	}
	return nil
}

func (p *pluginConfig) matches(n imageName) bool {
	return slices.ContainsFunc(p.match, func(q pattern) bool { return q.begins(n) })
}

// pluginFiles lists the files of a configuration: path itself, or what is in the
// directory path, with what tells that one of them has changed.
func pluginFiles(path string) (files []string, ids []fileID, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	files = []string{path}
	if st.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, nil, err
		}
		files = nil
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".json" || ext == ".yaml" || ext == ".yml") {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, identify(st))
	}
	return files, ids, nil
}

// readPluginConfig reads all files of a configuration.
func readPluginConfig(files []string) ([]pluginConfig, error) {
	var all []pluginConfig
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return nil, err
		}
		if err := guarded(st, f); err != nil {
			return nil, err // it says what we run
		}
		if !st.Mode().IsRegular() || st.Size() > maxPluginConfig {
			return nil, fmt.Errorf("%s is no regular file of at most %d bytes", f, maxPluginConfig)
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		list, err := parsePluginConfig(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		for _, p := range list {
			if slices.ContainsFunc(all, func(o pluginConfig) bool { return o.Name == p.Name }) {
				return nil, fmt.Errorf("%s: there are two providers named %s", f, p.Name)
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// checkProgram says why the plugin at path cannot be run.
func checkProgram(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s", path)
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is no program", path)
	}
	return guarded(st, path)
}
