package token

import (
	"crypto/ed25519"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// ErrUnauthorized is all that a verifier says of a token that it refuses.
var ErrUnauthorized = errors.New("unauthorized")

// maxRemembered bounds the memory of used tokens. Only the operator can fill
// it: a token is remembered only if it was good.
const maxRemembered = 1 << 14

// Verifier checks tokens for one pod. It is safe for concurrent use.
type Verifier struct {
	keys   map[string]ed25519.PublicKey
	podUID string
	parser *jwt.Parser
	now    func() time.Time

	usedMu  sync.Mutex
	used    map[string]time.Time // token id -> when it may be forgotten
	sweepAt time.Time
}

// NewVerifier returns a verifier for this pod's executor.
func NewVerifier(keys map[string]ed25519.PublicKey, podUID string) (*Verifier, error) {
	switch {
	case len(keys) == 0:
		return nil, errors.New("there is no public key")
	case podUID == "":
		return nil, errors.New("the pod's UID is not known")
	}
	v := &Verifier{keys: keys, podUID: podUID, now: time.Now, used: map[string]time.Time{}}
	v.parser = jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithAudience(podUID),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(func() time.Time { return v.now() }),
	)
	return v, nil
}

// Verify checks that the token is good for a request to the executor of this boot id, and
// spends it, so that it is good once. The body is read only when everything else is in
// order. An error of readBody is returned as it is, any other failure is ErrUnauthorized.
func (v *Verifier) Verify(token, bootID, method, path string, readBody func() ([]byte, error)) ([]byte, error) {
	c, err := v.parse(token)
	if err != nil || bootID == "" || !equal(c.Method, method) || !equal(c.Path, path) || !equal(c.BootID, bootID) {
		return nil, ErrUnauthorized
	}
	body, err := readBody()
	if err != nil {
		return nil, err
	}
	if !equal(c.Digest, digest(body)) || !v.spend(c) {
		return nil, ErrUnauthorized
	}
	return body, nil
}

func (v *Verifier) parse(token string) (*claims, error) {
	var c claims
	if _, err := v.parser.ParseWithClaims(token, &c, v.key); err != nil {
		return nil, err
	}
	if len(c.Audience) != 1 || c.ID == "" || c.IssuedAt == nil {
		return nil, ErrUnauthorized
	}
	if c.ExpiresAt.Sub(c.IssuedAt.Time) > Lifetime {
		return nil, ErrUnauthorized
	}
	return &c, nil
}

func (v *Verifier) key(t *jwt.Token) (any, error) {
	id, _ := t.Header["kid"].(string)
	key, found := v.keys[id]
	if !found {
		return nil, fmt.Errorf("no key %q", id)
	}
	return key, nil
}

// spend remembers a token until it expires and tells whether it was new.
func (v *Verifier) spend(c *claims) bool {
	now := v.now()
	v.usedMu.Lock()
	defer v.usedMu.Unlock()
	if _, seen := v.used[c.ID]; seen {
		return false
	}
	if now.After(v.sweepAt) || len(v.used) >= maxRemembered {
		for id, until := range v.used {
			if now.After(until) {
				delete(v.used, id)
			}
		}
		v.sweepAt = now.Add(Lifetime)
	}
	if len(v.used) >= maxRemembered {
		return false
	}
	v.used[c.ID] = c.ExpiresAt.Add(leeway + time.Second)
	return true
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
