package images

const nginxPage = "It works: served from an image that was assembled from packages.\n"

// nginx is a server whose start script writes its configuration, as the common
// nginx images do.
func nginx() recipe {
	const script = `#!/bin/sh
set -e
sed "s/@PORT@/${PORT:-8080}/" /etc/nginx/nginx.conf.template > /run/nginx.conf
exec nginx -c /run/nginx.conf -g 'daemon off;'
`
	const conf = `user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  include /etc/nginx/mime.types;
  access_log off;
  server {
    listen 127.0.0.1:@PORT@;
    root /srv/www;
  }
}
`
	return recipe{
		layers: []layerRecipe{base(), {name: "nginx", packages: []string{"nginx", "openssl", "ca-certificates"}}, {name: "nginx-site", files: []file{
			{path: "docker-entrypoint.sh", text: script, mode: 0o755},
			{path: "etc/nginx/nginx.conf.template", text: conf},
			{path: "srv/www/"},
			{path: "srv/www/index.html", text: nginxPage},
		}}},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "nginx", Path: "/index.html", Body: nginxPage},
	}
}

// redis is a server without a port: its start script asks it through its socket.
func redis() recipe {
	const script = `#!/bin/sh
set -e
socket=/tmp/redis.sock
redis-server --port 0 --unixsocket $socket --dir /tmp --save '' --appendonly no > /tmp/redis.log &
until [ "$(redis-cli -s $socket ping 2>&1)" = PONG ]; do
  kill -0 $! || { cat /tmp/redis.log; exit 1; }
  sleep 0.01
done
redis-cli -s $socket set answer $((6 * 7)) > /tmp/redis.set
echo "redis answers $(redis-cli -s $socket get answer)"
wait
`
	return recipe{
		layers: []layerRecipe{base(), {name: "redis", packages: []string{"redis-server", "redis-tools"}}, {name: "redis-app", files: []file{
			{path: "docker-entrypoint.sh", text: script, mode: 0o755},
		}}},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "redis", Line: "redis answers 42"},
	}
}

// postgres makes its data directory at its first start, as the common images do,
// and its start script asks it through its socket.
func postgres() recipe {
	const script = `#!/bin/sh
set -e
mkdir -p /data
chown postgres:postgres /data
exec setpriv --reuid=postgres --regid=postgres --clear-groups --no-new-privs sh /app/serve.sh
`
	const serve = `set -e
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
initdb --pgdata=/data --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync > /tmp/initdb.log 2>&1 || { cat /tmp/initdb.log; exit 1; }
postgres -D /data -c listen_addresses= -c unix_socket_directories=/tmp > /tmp/postgres.log 2>&1 &
until psql -h /tmp -c 'select' > /tmp/psql.log 2>&1; do
  kill -0 $! || { cat /tmp/postgres.log; exit 1; }
  sleep 0.01
done
psql -h /tmp -q > /tmp/psql.log 2>&1 -c 'create table t as select n, md5(n::text) as text from generate_series(1, 1000) n'
echo "postgres answers $(psql -h /tmp -At -c "select sum(n), count(distinct text), to_char(date '2024-02-28' + 1, 'DD Mon') from t")"
wait
`
	return recipe{
		layers: []layerRecipe{
			base(), {name: "perl", packages: []string{"perl", "openssl", "locales", "netbase"}},
			{name: "postgres-client", packages: []string{"postgresql-client"}},
			{name: "postgres", packages: []string{"postgresql"}}, {name: "postgres-app", files: []file{
				{path: "docker-entrypoint.sh", text: script, mode: 0o755},
				{path: "app/"}, {path: "app/serve.sh", text: serve},
				{path: "etc/passwd", text: "root:x:0:0:root:/root:/bin/bash\npostgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/bash\n"},
				{path: "etc/group", text: "root:x:0:\npostgres:x:999:\n"},
			}},
		},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "postgres", Line: "postgres answers 500500|1000|29 Feb"},
	}
}

// phpApache renders a page with Twig, whose classes are a few hundred files.
func phpApache() recipe {
	const script = `#!/bin/sh
set -e
export PORT=${PORT:-8080} PHP_MODULE=$(echo /usr/lib/apache2/modules/libphp*.so)
exec apache2 -f /etc/apache2/site.conf -D FOREGROUND
`
	const conf = `ServerRoot /etc/apache2
ServerName localhost
Listen 127.0.0.1:${PORT}
PidFile /run/apache2.pid
DefaultRuntimeDir /run
ErrorLog /dev/stderr
User www-data
Group www-data
LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
LoadModule rewrite_module /usr/lib/apache2/modules/mod_rewrite.so
LoadModule php_module ${PHP_MODULE}
TypesConfig /etc/mime.types
StartServers 2
DocumentRoot /srv/www
DirectoryIndex index.php
<FilesMatch "\.php$">
  SetHandler application/x-httpd-php
</FilesMatch>
`
	const page = `<?php
require '/usr/share/php/Twig/autoload.php';
$loader = new Twig\Loader\ArrayLoader([
    'base' => '<title>{% block title %}{% endblock %}</title>{% block body %}{% endblock %}',
    'page' => '{% extends "base" %}{% block title %}{{ name|upper }}{% endblock %}'
        . '{% block body %}{% for n in 1..5 %}{{ n ** 2 }} {% endfor %}{{ day|date("Y-m-d") }} {{ word|length }}{% endblock %}',
]);
$twig = new Twig\Environment($loader);
echo $twig->render('page', ['name' => 'php', 'day' => '@1709164800', 'word' => 'größer']);
`
	extensions := "extension=ctype\nextension=mbstring\nextension=tokenizer\nextension=iconv\n"
	return recipe{
		layers: []layerRecipe{
			base(), {name: "apache", packages: []string{"apache2"}}, {name: "php", packages: []string{"libapache2-mod-php", "php-mbstring"}},
			{name: "twig", packages: []string{"php-twig"}}, {name: "php-apache-app", files: []file{
				{path: "docker-entrypoint.sh", text: script, mode: 0o755},
				{path: "etc/apache2/site.conf", text: conf},
				{path: "etc/php-site/"}, {path: "etc/php-site/extensions.ini", text: extensions},
				{path: "srv/www/"}, {path: "srv/www/index.php", text: page},
			}},
		},
		env:        map[string]string{"PHP_INI_SCAN_DIR": "/etc/php-site"},
		entrypoint: []string{"/docker-entrypoint.sh"},
		spec:       Spec{Repository: "php-apache", Path: "/", Body: "<title>PHP</title>1 4 9 16 25 2024-02-29 6"},
	}
}
