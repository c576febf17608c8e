package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
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

// FormatPublicKeys writes public keys for an executor's environment: a JSON
// object from key id to the key's 32 bytes in base64.
func FormatPublicKeys(keys ...ed25519.PublicKey) string {
	byID := make(map[string][]byte, len(keys))
	for _, key := range keys {
		byID[KeyID(key)] = key
	}
	text, _ := json.Marshal(byID) // a map of bytes always marshals
	return string(text)
}

// ParsePublicKeys reads what FormatPublicKeys wrote.
func ParsePublicKeys(text string) (map[string]ed25519.PublicKey, error) {
	var byID map[string][]byte // base64 in JSON
	if err := json.Unmarshal([]byte(text), &byID); err != nil {
		return nil, fmt.Errorf("the public keys are not a JSON object of base64: %w", err)
	}
	if len(byID) == 0 {
		return nil, errors.New("there is no public key")
	}
	keys := make(map[string]ed25519.PublicKey, len(byID))
	for id, key := range byID {
		if len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("public key %q has %d bytes, not %d", id, len(key), ed25519.PublicKeySize)
		}
		keys[id] = key
	}
	return keys, nil
}
