package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// GenerateKey makes a new private key.
func GenerateKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// KeyID names a key: a digest of its public half, so that nobody has to choose
// names and no two keys share one.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// FormatPrivateKey writes a private key as PEM (PKCS #8).
func FormatPrivateKey(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParsePrivateKey reads what FormatPrivateKey wrote. Its errors do not quote
// the text.
func ParsePrivateKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key is not PKCS #8")
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the private key is a %T, not an Ed25519 key", key)
	}
	return private, nil
}

// FormatSeed writes the private key of one pod's executor for its environment.
func FormatSeed(key ed25519.PrivateKey) string {
	return base64.StdEncoding.EncodeToString(key.Seed())
}

// ParseSeed reads what FormatSeed wrote. Its errors do not quote the text.
func ParseSeed(text string) (ed25519.PrivateKey, error) {
	seed, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("not %d bytes of base64", ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// FormatPublicKey and ParsePublicKey are for the public half, in an annotation of the pod.
func FormatPublicKey(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// ParsePublicKey reads one key as base64 or PEM.
func ParsePublicKey(text string) (ed25519.PublicKey, error) { return parsePublicKey(text) }

// FormatPublicKeys writes public keys for an executor's environment: a JSON
// object from key id to the key's 32 bytes in base64.
func FormatPublicKeys(keys ...ed25519.PublicKey) string {
	byID := make(map[string]string, len(keys))
	for _, key := range keys {
		byID[KeyID(key)] = base64.StdEncoding.EncodeToString(key)
	}
	text, _ := json.Marshal(byID) // a map of strings always marshals
	return string(text)
}

// ParsePublicKeys reads what FormatPublicKeys wrote, or one key alone as base64
// or PEM.
func ParsePublicKeys(text string) (map[string]ed25519.PublicKey, error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "{") {
		key, err := parsePublicKey(text)
		if err != nil {
			return nil, err
		}
		return map[string]ed25519.PublicKey{KeyID(key): key}, nil
	}
	var byID map[string]string
	if err := json.Unmarshal([]byte(text), &byID); err != nil {
		return nil, fmt.Errorf("the public keys are not a JSON object of strings: %w", err)
	}
	if len(byID) == 0 {
		return nil, errors.New("there is no public key")
	}
	keys := make(map[string]ed25519.PublicKey, len(byID))
	for id, encoded := range byID {
		key, err := parsePublicKey(encoded)
		if err != nil {
			return nil, fmt.Errorf("public key %q: %w", id, err)
		}
		keys[id] = key
	}
	return keys, nil
}

func parsePublicKey(text string) (ed25519.PublicKey, error) {
	if block, _ := pem.Decode([]byte(text)); block != nil {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, errors.New("not a PKIX public key")
		}
		public, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("a %T, not an Ed25519 key", key)
		}
		return public, nil
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("not %d bytes of base64, nor PEM", ed25519.PublicKeySize)
	}
	return raw, nil
}
