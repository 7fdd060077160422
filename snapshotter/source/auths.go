package source

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Auth is a credential and the Key of what it is for: a registry, or one repository
// of it and those below, "registry.example.com:5000/team"; the host may have wildcards.
// There is one key for what it is for, though files may have several.
type Auth struct {
	Key string
	Credential
}

// For says whether the credential is for the repository repo ("team/app") on host.
func (a Auth) For(host, repo string) bool {
	p, err := parsePattern(a.Key)
	return err == nil && p.below(imageName{canonicalHost(host), repo})
}

// Key returns the key for the repository repo on host and those below it; for the
// registry, if repo is empty.
func Key(host, repo string) string {
	if first, _, _ := strings.Cut(repo, "/"); first == "v1" || first == "v2" {
		repo = "v2/" + repo // else it would be read as that of the registry's address
	}
	return strings.TrimSuffix(host+"/"+repo, "/")
}

// dockerAuth is the credential of one key of auths in docker's config.json.
type dockerAuth struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

// dockerConfig is as much of docker's config.json (docker/cli, cli/config/configfile)
// as we read. An object has one value for a key: where a file of ours has several
// credentials for one, it has several such objects in Configs, tried in turn.
type dockerConfig struct {
	Auths   map[string]dockerAuth `json:"auths,omitempty"`
	Configs []dockerConfig        `json:"configs,omitempty"`
}

// ParseAuths reads docker's config.json, or what MarshalAuths made. bad are entries
// that are left out, without what is secret in them.
func ParseAuths(b []byte) (auths []Auth, bad []string, err error) {
	var file dockerConfig
	if err := json.Unmarshal(b, &file); err != nil {
		// The cause could quote the file.
		return nil, nil, errors.New(`not of the form {"auths": {"registry.example.com": {"auth": "..."}}}`)
	}
	for _, c := range append([]dockerConfig{file}, file.Configs...) {
		a, b := readAuths(c.Auths)
		auths, bad = append(auths, a...), append(bad, b...)
	}
	return auths, bad, nil
}

// ParseLegacyAuths is ParseAuths for the older .dockercfg, which is the value of auths
// alone.
func ParseLegacyAuths(b []byte) (auths []Auth, bad []string, err error) {
	var file map[string]dockerAuth
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, nil, errors.New(`not of the form {"registry.example.com": {"auth": "..."}}`)
	}
	auths, bad = readAuths(file)
	return auths, bad, nil
}

func readAuths(all map[string]dockerAuth) (auths []Auth, bad []string) {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		a := all[key]
		p, err := parsePattern(key)
		if err != nil {
			bad = append(bad, fmt.Sprintf("auths key %q: %v", key, err))
			continue
		}
		c := Credential{User: a.Username, Secret: a.Password}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				bad = append(bad, fmt.Sprintf("auths key %q: auth is not base64 of user:password", key))
				continue
			}
			c = Credential{User: user, Secret: strings.Trim(password, "\x00")}
		}
		if a.IdentityToken != "" {
			c = Credential{Secret: a.IdentityToken}
		}
		if c.Secret != "" {
			auths = append(auths, Auth{p.String(), c})
		}
	}
	return auths, bad
}

// entries are auths whose keys can be read, the more specific first.
func entries(auths []Auth) []entry {
	var list []entry
	for _, a := range auths {
		if p, err := parsePattern(a.Key); err == nil {
			list = append(list, entry{p, a.Credential})
		}
	}
	sortEntries(list)
	return list
}

// MarshalAuths makes a file for a directory of credentials. Of several credentials for
// one key the first is tried first.
func MarshalAuths(auths []Auth) ([]byte, error) {
	file := dockerConfig{Configs: []dockerConfig{}}
	times := map[string]int{}
	for _, a := range auths {
		n := times[a.Key]
		times[a.Key]++
		if n == len(file.Configs) {
			file.Configs = append(file.Configs, dockerConfig{Auths: map[string]dockerAuth{}})
		}
		d := dockerAuth{IdentityToken: a.Secret}
		if a.User != "" {
			// base64 keeps bytes that are no UTF-8, but not a colon in the name.
			d = dockerAuth{Auth: base64.StdEncoding.EncodeToString([]byte(a.User + ":" + a.Secret))}
			if strings.Contains(a.User, ":") {
				d = dockerAuth{Username: a.User, Password: a.Secret}
			}
		}
		file.Configs[n].Auths[a.Key] = d
	}
	return json.Marshal(file)
}
