package gormsessions

import (
	"github.com/google/uuid"
	"gorm.io/gorm"
)

// Cache is a cache in front of Authenticate and Lookup, for Config.Cache: take
// that of package sessioncache, a new one for each plugin. Applications call none
// of its methods; they are what the plugin asks of a cache, and all of them are safe
// for concurrent use.
type Cache interface {
	// Migrate makes what the cache needs in the database, once the tables are
	// migrated, and may be called again; Drop removes it.
	Migrate(tx *gorm.DB, tables CacheTables) error
	Drop(tx *gorm.DB, tables CacheTables) error

	// Open readies the cache when the plugin is registered. It is an error to
	// open one twice.
	Open(db *gorm.DB, tables CacheTables) error

	// Clock is a stamp of now, by which the cache tells what has changed since. The
	// plugin asks for it before it reads a value that it will Put.
	Clock() uint64

	// Get returns what was put under the key; or nil, where a row that it hangs on
	// has changed since it was read, or may have.
	Get(key CacheKey) any

	// Put keeps a value that was read after the stamp read, from the primary and
	// outside transactions. It hangs on the rows that the tags name, four at most.
	// One that is out of date already is never returned.
	Put(key CacheKey, value any, read uint64, tags ...CacheTag)

	// Changed says that rows have changed, and that the change is committed. Once it
	// has returned, Get on this node no longer returns what hangs on them and was
	// read before.
	Changed(tags ...CacheTag)

	// Pending says that rows were changed in a transaction that may yet commit.
	// Until ended is called, Get returns nothing that hangs on them; the call then
	// counts as Changed.
	Pending(tags ...CacheTag) (ended func())
}

// CacheKey is what a token is looked up by in a [Cache]: the first bytes of its
// digest. Two tokens may share it, so the plugin compares the rest of what it gets.
type CacheKey [32]byte

// CacheTag names a row that cached values hang on. Nodes tell each other of them,
// and PostgreSQL's triggers write them.
type CacheTag string

// EveryTag names all rows.
const EveryTag CacheTag = "*"

// SessionTag names the session of that ID: the letter s, then the ID as text.
func SessionTag(id uuid.UUID) CacheTag { return CacheTag("s" + id.String()) }

// CacheTables are what a [Cache] listens to. Names are as the schema has them:
// unquoted, with the database's schema before a dot where the model says so.
type CacheTables struct {
	Sessions   string // the table of the sessions
	SessionKey string // its primary key
	Owners     string // the table of their owners; empty where the model has none
	OwnerKey   string // its primary key; an owner's tag is the letter o, then the key as text. Empty: each change is EveryTag
}
