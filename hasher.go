package gormsessions

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	_ "crypto/sha1" // linked: Hash(crypto.SHA1) is for imports
	"crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"sync"
)

// Hasher makes the digest that the database keeps of a token. Digest must give
// the same bytes for the same token on every call and every node, at most 64 of
// them, and be safe for concurrent use.
//
// A token has at least 128 random bits, so a plain hash is enough: there is
// nothing to guess, and nothing to slow down as for passwords. With HMAC, somebody
// who can write to the database, and no more, cannot make up a valid digest.
type Hasher interface{ Digest(token string) []byte }

const (
	maxDigest = 64 // bytes: the longest of the hashes below; the column's size
	minPepper = 32 // bytes: as strong as the tokens
)

// Hash is the hash h of the token. Every crypto.Hash but MD4, MD5 and
// MD5SHA1 may be used; the program imports the packages of those outside the
// standard library (BLAKE2b, BLAKE2s, RIPEMD-160). One that is broken or not
// linked is an error when the plugin is registered.
func Hash(h crypto.Hash) Hasher {
	hs := newHasher(h, h.New, nil)
	hs.sha256 = h == crypto.SHA256
	return hs
}

// HMAC is HMAC with the hash h and a secret pepper of at least 32 bytes, kept
// outside the database and the same on every node. A shorter one is an error
// when the plugin is registered.
func HMAC(h crypto.Hash, pepper []byte) Hasher {
	pepper = bytes.Clone(pepper)
	hs := newHasher(h, func() hash.Hash { return hmac.New(h.New, pepper) }, nil)
	if hs.err == nil && len(pepper) < minPepper {
		hs.err = fmt.Errorf("the pepper has %d bytes: at least %d are needed, from a random source", len(pepper), minPepper)
	}
	return hs
}

// Salted is the hash h of salt‖token, with one salt for all sessions: what
// ecto_sessions stores (there in hexadecimal). It is for imports; new
// applications take [HMAC].
func Salted(h crypto.Hash, salt []byte) Hasher {
	salt = bytes.Clone(salt)
	return newHasher(h, h.New, func(state hash.Hash) { state.Write(salt) })
}

// Plaintext stores the token itself. UNSAFE: who reads the database, a backup
// or a replica is signed in as everybody. It is for tests, and for imports
// that a second Hasher in Config.Hashers then replaces. Tokens of more than 64
// bytes do not fit.
func Plaintext() Hasher { return &hasher{} }

// hasher keeps its pepper or salt in closures, where nothing that prints, encodes or
// dumps a Config can reach it.
type hasher struct {
	states *sync.Pool // of *hashState; nil: the token itself
	sha256 bool       // that of the token alone: the default, which needs no state
	err    error
}

type hashState struct {
	hash  hash.Hash
	begin func(hash.Hash) // nil: with nothing
	token [maxToken]byte
	sum   [maxDigest]byte
}

func newHasher(h crypto.Hash, fresh func() hash.Hash, begin func(hash.Hash)) *hasher {
	return &hasher{err: usable(h), states: &sync.Pool{New: func() any { return &hashState{hash: fresh(), begin: begin} }}}
}

// Digest implements Hasher. A hasher that registering refuses makes none.
func (h *hasher) Digest(token string) []byte { return h.append(nil, token) }

// append appends the digest to dst.
func (h *hasher) append(dst []byte, token string) []byte {
	if h.err != nil {
		return dst
	}
	if h.states == nil {
		return append(dst, token...)
	}
	if h.sha256 && len(token) <= maxToken {
		var text [maxToken]byte
		sum := sha256.Sum256(text[:copy(text[:], token)])
		return append(dst, sum[:]...)
	}
	s := h.states.Get().(*hashState)
	if s.begin != nil {
		s.begin(s.hash)
	}
	for rest := token; rest != ""; { // a hash takes no string
		n := copy(s.token[:], rest)
		s.hash.Write(s.token[:n])
		rest = rest[n:]
	}
	dst = append(dst, s.hash.Sum(s.sum[:0])...)
	s.hash.Reset() // the token is a secret
	clear(s.token[:])
	h.states.Put(s)
	return dst
}

func usable(h crypto.Hash) error {
	switch h {
	case crypto.MD4, crypto.MD5, crypto.MD5SHA1:
		return fmt.Errorf("%v is broken: use crypto.SHA256", h)
	}
	if h.Available() {
		return nil
	}
	switch h {
	case crypto.BLAKE2b_256, crypto.BLAKE2b_384, crypto.BLAKE2b_512:
		return notLinked(h, "golang.org/x/crypto/blake2b")
	case crypto.BLAKE2s_256:
		return notLinked(h, "golang.org/x/crypto/blake2s")
	case crypto.RIPEMD160:
		return notLinked(h, "golang.org/x/crypto/ripemd160")
	}
	return fmt.Errorf("%d is no hash that Go knows", h)
}

func notLinked(h crypto.Hash, pkg string) error {
	return fmt.Errorf(`%v is not linked into the program: import _ %q`, h, pkg)
}

// checkHasher refuses what could not make a digest of every token.
func checkHasher(h Hasher, sample string) error {
	if h == nil {
		return errors.New("nil")
	}
	if own, ok := h.(*hasher); ok && own.err != nil {
		return own.err
	}
	switch n := len(h.Digest(sample)); {
	case n == 0:
		return errors.New("it makes an empty digest")
	case n > maxDigest:
		return fmt.Errorf("it makes digests of %d bytes: at most %d fit", n, maxDigest)
	}
	return nil
}
