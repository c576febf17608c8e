// Package token makes and checks the token that every request to a task executor carries:
// a JWT that the operator signs with Ed25519. It is for one pod, one boot id of its executor
// and one request, and is good once and for seconds.
//
// The operator signs (through executor/client); the executor verifies (through
// executor/server). An executor never holds a private key.
package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Lifetime is how long a token is good.
const Lifetime = 30 * time.Second

// leeway is how far the clocks of the operator's node and the pod's may differ.
const leeway = 30 * time.Second

// Request is what a token is bound to.
type Request struct {
	PodUID string
	// BootID is the executor's. It is empty if the client does not know it yet: every
	// executor refuses that, and names its own in the refusal.
	BootID string
	Method string
	// Path with its query, as on the request line.
	Path string
	Body []byte
}

type claims struct {
	Method string `json:"mth"`
	Path   string `json:"pth"`
	Digest string `json:"dig"`
	BootID string `json:"bid"`
	jwt.RegisteredClaims
}

// Signer signs with one private key. It is safe for concurrent use.
type Signer struct {
	key ed25519.PrivateKey
	id  string
	now func() time.Time
}

// NewSigner returns a signer that names its key by KeyID.
func NewSigner(key ed25519.PrivateKey) *Signer {
	return &Signer{key: key, id: KeyID(publicHalf(key)), now: time.Now}
}

// KeyID is the name of the signer's key.
func (s *Signer) KeyID() string { return s.id }

// PublicKey is the half of the signer's key that executors get.
func (s *Signer) PublicKey() ed25519.PublicKey { return publicHalf(s.key) }

func publicHalf(key ed25519.PrivateKey) ed25519.PublicKey {
	public, _ := key.Public().(ed25519.PublicKey) // which it always is
	return public
}

// Sign returns a new token for one request.
func (s *Signer) Sign(r Request) (string, error) {
	now := s.now()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims{
		Method: r.Method,
		Path:   r.Path,
		Digest: digest(r.Body),
		BootID: r.BootID,
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{r.PodUID},
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(Lifetime)),
			ID:        newID(),
		},
	})
	t.Header["kid"] = s.id
	return t.SignedString(s.key)
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(id[:])
}
