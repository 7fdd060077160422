package podsecrets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/snapshotter/source"
)

const (
	// parallel is how many objects are read at a time.
	parallel = 4
	// passTime bounds how long reading all that is due may take.
	passTime = time.Minute
)

// object names a secret or a service account.
type object struct {
	resource        string
	namespace, name string
}

func (o object) path() string {
	return "/api/v1/namespaces/" + url.PathEscape(o.namespace) + "/" + o.resource + "/" + url.PathEscape(o.name)
}

// what is known of an object.
type known struct {
	answered bool      // the server has told, if only that there is none
	read     time.Time // tried last
	due      time.Time // to be read again
	auths    []source.Auth
	secrets  []string // of a service account
	problem  string   // was logged
	failed   error    // of the last reading
}

// cache has the secrets and service accounts that the pods use. It is used by one
// goroutine at a time.
type cache struct {
	api   *kubeapi.Client
	every time.Duration
	log   *slog.Logger
	known map[object]*known
}

func newCache(api *kubeapi.Client, every time.Duration, log *slog.Logger) *cache {
	return &cache{api: api, every: every, log: log, known: map[object]*known{}}
}

// refresh reads what the pods use and is not known, old, or of a pod that changed. It
// forgets what none uses, and returns when to refresh again, of how many objects
// nothing is known, and why, if the server does not say.
func (c *cache) refresh(ctx context.Context, pods []*pod) (next time.Duration, unknown int, err error) {
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	used := map[object]time.Time{} // and the last change of a pod that does
	for _, p := range pods {
		if p.account != "" {
			use(used, object{"serviceaccounts", p.namespace, p.account}, p.touched)
		}
	}
	c.read(ctx, used)
	for _, p := range pods {
		for _, s := range c.secrets(p) {
			use(used, s, p.touched)
		}
	}
	c.read(ctx, used)
	soonest := time.Now().Add(c.every)
	for o, k := range c.known {
		touched, ok := used[o]
		if !ok {
			delete(c.known, o)
			continue
		}
		if !k.answered {
			unknown++
		}
		if k.failed != nil && (err == nil || k.failed.Error() < err.Error()) {
			err = k.failed // always the same one
		}
		if at := k.next(touched); at.Before(soonest) {
			soonest = at
		}
	}
	return max(time.Until(soonest), settle), unknown, err
}

func use(used map[object]time.Time, o object, touched time.Time) {
	if touched.After(used[o]) {
		used[o] = touched
	}
}

// secrets are those of a pod and of its service account.
func (c *cache) secrets(p *pod) []object {
	all := p.secrets
	if k := c.known[object{"serviceaccounts", p.namespace, p.account}]; k != nil {
		all = slices.Concat(all, k.secrets)
	}
	var list []object
	for _, name := range all {
		if o := (object{"secrets", p.namespace, name}); !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	return list
}

// auths are the credentials of a pod.
func (c *cache) auths(p *pod) []source.Auth {
	var list []source.Auth
	for _, o := range c.secrets(p) {
		if k := c.known[o]; k != nil {
			list = append(list, k.auths...)
		}
	}
	return list
}

// next is when an object is to be read again, given the last change of its pods.
func (k *known) next(touched time.Time) time.Time {
	if at := k.read.Add(minAge); touched.After(k.read) && at.Before(k.due) {
		return at
	}
	return k.due
}

// read reads those of the objects that are due.
func (c *cache) read(ctx context.Context, used map[object]time.Time) {
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for o, touched := range used {
		k := c.known[o]
		if k == nil {
			k = &known{}
			c.known[o] = k
		}
		now := time.Now()
		if now.Before(k.next(touched)) {
			continue
		}
		// One that may have changed just now is read from the store, one that only grew
		// old from the server's memory.
		fresh := !k.answered || touched.After(k.read)
		slots <- struct{}{}
		group.Go(func() {
			c.get(ctx, o, k, fresh)
			<-slots
		})
	}
	group.Wait()
}

// get reads one object.
func (c *cache) get(ctx context.Context, o object, k *known, fresh bool) {
	path := o.path()
	if !fresh {
		path += "?resourceVersion=0"
	}
	k.read = time.Now()
	k.due = k.read.Add(c.every*4/5 + rand.N(c.every*2/5)) // not all at once
	var auths []source.Auth
	var secrets []string
	var err error
	if o.resource == "secrets" {
		auths, err = c.secret(ctx, path)
	} else {
		secrets, err = c.account(ctx, path)
	}
	var bad unusable
	if err != nil && !kubeapi.IsNotFound(err) && !kubeapi.IsForbidden(err) && !errors.As(err, &bad) {
		// What was known is better than nothing.
		k.failed, k.due = err, k.read.Add(min(c.every, again))
		return
	}
	k.answered, k.failed, k.auths, k.secrets = true, nil, auths, secrets
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != "" && problem != k.problem {
		c.log.Warn("credentials of pods: "+strings.TrimSuffix(o.resource, "s")+" is not used", "namespace", o.namespace, "name", o.name, "reason", problem)
	}
	k.problem = problem
}

// unusable is what is wrong with a secret that can be read.
type unusable string

func (u unusable) Error() string { return string(u) }

// account reads which secrets a service account has.
func (c *cache) account(ctx context.Context, path string) ([]string, error) {
	var o struct {
		ImagePullSecrets []localName `json:"imagePullSecrets"`
	}
	err := c.api.Get(ctx, path, &o)
	return names(o.ImagePullSecrets), err
}

// secret reads a pull secret. Beside an error there may be credentials.
func (c *cache) secret(ctx context.Context, path string) ([]source.Auth, error) {
	var o struct {
		Type string            `json:"type"`
		Data map[string][]byte `json:"data"`
	}
	if err := c.api.Get(ctx, path, &o); err != nil {
		return nil, err
	}
	parse, key := source.ParseAuths, ".dockerconfigjson"
	switch o.Type {
	case "kubernetes.io/dockerconfigjson":
	case "kubernetes.io/dockercfg":
		parse, key = source.ParseLegacyAuths, ".dockercfg"
	default:
		return nil, unusable(fmt.Sprintf("its type is %q, not kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg", o.Type))
	}
	auths, bad, err := parse(o.Data[key])
	if err != nil {
		return nil, unusable(key + ": " + err.Error())
	}
	if len(bad) > 0 {
		err = unusable(fmt.Sprintf("in part: %.500s", strings.Join(bad, "; ")))
	}
	return auths, err
}
