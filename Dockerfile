# docker build -t rarlhf_nb . && docker run --rm -v "$PWD/runs:/rarlhf_nb/papermill_runs" rarlhf_nb
# The default command is `make run`; `docker run -it -p 127.0.0.1:8888:8888 rarlhf_nb make lab ARGS="--ip 0.0.0.0 --allow-root"` opens JupyterLab.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends chromium git make && rm -rf /var/lib/apt/lists/*
WORKDIR /rarlhf_nb
COPY . .
RUN make setup
CMD ["make", "run"]
