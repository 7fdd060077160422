package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// pluginTimeout ends a plugin, as kubelet does.
	pluginTimeout = time.Minute
	// pluginGrace is how long its output may stay open after its end, by a child
	// that has left its process group.
	pluginGrace = 2 * time.Second
	// maxPluginOutput is the longest answer of a plugin, in bytes.
	maxPluginOutput = 1 << 20
	// maxPluginMessage is how much of a plugin's standard error is quoted, in bytes.
	maxPluginMessage = 300
	// minSecret is the shortest word that is struck out of it, in bytes: shorter
	// ones are no secrets, and striking them would garble the message.
	minSecret = 4
)

// answerWords are in every answer, and not secret.
var answerWords = []string{
	"apiVersion", "kind", "CredentialProviderResponse", "cacheKeyType", "cacheDuration", cacheImage, cacheRegistry, cacheGlobal,
	"auth", "username", "password", "null",
}

// How long an answer holds for: for one repository, a registry, or all.
const (
	cacheImage    = "Image"
	cacheRegistry = "Registry"
	cacheGlobal   = "Global"
)

// answer is what a plugin said.
type answer struct {
	cacheType string
	life      *duration // nil: not said
	entries   []entry
}

// secrets are the passwords in an answer, in all their forms.
func (a answer) secrets() []string {
	var s []string
	for _, e := range a.entries {
		s = append(s, e.Secret, base64.StdEncoding.EncodeToString([]byte(e.User+":"+e.Secret)))
	}
	return s
}

// parseAnswer reads a CredentialProviderResponse (k8s.io/kubelet,
// pkg/apis/credentialprovider). Its errors never quote it.
func parseAnswer(b []byte, apiVersion string) (answer, error) {
	var r struct {
		APIVersion    string    `json:"apiVersion"`
		Kind          string    `json:"kind"`
		CacheKeyType  string    `json:"cacheKeyType"`
		CacheDuration *duration `json:"cacheDuration"`
		Auth          map[string]struct {
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auth"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return answer{}, errors.New("it printed nothing")
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return answer{}, errors.New("what it printed is not the JSON of a CredentialProviderResponse")
	}
	if r.Kind != "CredentialProviderResponse" || r.APIVersion != apiVersion {
		return answer{}, fmt.Errorf("its answer is not a CredentialProviderResponse of %s, which it is configured for", apiVersion)
	}
	switch r.CacheKeyType {
	case cacheImage, cacheRegistry, cacheGlobal:
	default:
		return answer{}, errors.New("cacheKeyType of its answer is none of Image, Registry, Global")
	}
	a := answer{cacheType: r.CacheKeyType, life: r.CacheDuration}
	for key, c := range r.Auth {
		p, err := parsePattern(key)
		if err != nil {
			return answer{}, fmt.Errorf("a key of auth in its answer: %w", err)
		}
		if c.Password != "" {
			a.entries = append(a.entries, entry{p, Credential{c.Username, c.Password}})
		}
	}
	sortEntries(a.entries)
	return a, nil
}

// exec runs the plugin for n.
func (p *plugin) exec(ctx context.Context, n imageName) (answer, error) {
	if err := checkProgram(p.path); err != nil {
		return answer{}, err
	}
	request, err := json.Marshal(map[string]string{"apiVersion": p.APIVersion, "kind": "CredentialProviderRequest", "image": n.String()})
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("it did not answer within %s", p.timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, p.path, p.Args...)
	cmd.Env, cmd.Dir = p.environ(), "/"
	cmd.Stdin = bytes.NewReader(request)
	out := &limited{most: maxPluginOutput, full: func() {
		stop(fmt.Errorf("it printed more than %d bytes", maxPluginOutput))
	}}
	said := &limited{most: 8 << 10}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pluginGrace
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		// It has ended well and left a child behind, which must not stay.
		_ = cmd.Cancel()
		err = nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if text := p.quote(said.b, out.b); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return answer{}, err
	}
	return parseAnswer(out.b, p.APIVersion)
}

// environ is our own environment, as kubelet gives its own, without what systemd
// and our holder meant for us alone, and the configured variables.
func (p *plugin) environ() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case name == "NOTIFY_SOCKET", strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"), strings.HasPrefix(name, "APPARATE_"):
			continue
		}
		env = append(env, v)
	}
	for _, e := range p.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	return env
}

// quote returns the beginning of what a plugin said on standard error, on one
// line, without anything that it also printed as its answer, that it was told in
// its environment, or that looks like a secret.
func (p *plugin) quote(said, printed []byte) string {
	text := string(said)
	secrets := p.secrets()
	for _, e := range p.Env {
		secrets = append(secrets, e.Value)
	}
	if a, err := parseAnswer(printed, p.APIVersion); err == nil {
		secrets = append(secrets, a.secrets()...)
	}
	for _, w := range strings.FieldsFunc(string(printed), func(r rune) bool {
		return unicode.IsSpace(r) || strings.ContainsRune(`"',:{}[]`, r)
	}) {
		if !slices.Contains(answerWords, w) {
			secrets = append(secrets, w)
		}
	}
	for _, s := range secrets {
		if len(s) >= minSecret {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	text = fetch.Redact(errors.New(text)).Error()
	if len(text) > maxPluginMessage {
		text = strings.ToValidUTF8(text[:maxPluginMessage], "") + "…"
	}
	return text
}

// limited keeps the first most bytes that are written to it. It has no ReadFrom,
// by which io.Copy would go around Write.
type limited struct {
	b    []byte
	most int
	full func() // called when there are more; nil drops them
}

func (l *limited) Write(b []byte) (int, error) {
	room := min(l.most-len(l.b), len(b))
	l.b = append(l.b, b[:room]...)
	if room < len(b) && l.full != nil {
		l.full()
	}
	return len(b), nil
}
